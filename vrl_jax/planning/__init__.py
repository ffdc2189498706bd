"""What a step needs of each chip, before one is rented: `vrl-jax plan`."""
