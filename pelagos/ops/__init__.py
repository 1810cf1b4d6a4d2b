"""Numeric functions of the model. ``contract`` lists them, ``reference`` defines them, ``dispatch`` says which code
runs."""
