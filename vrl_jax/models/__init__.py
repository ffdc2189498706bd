"""Models: a policy is a spec, parameters, and pure functions of them."""
