"""What a recipe may ask of a model: processing, likelihood, sampling, acting."""
