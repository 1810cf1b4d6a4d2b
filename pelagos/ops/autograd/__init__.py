"""The model's functions for training: large batched operations with fast gradients, equal to the reference within
rounding. A row's last bits may depend on its neighbours here; inference runs on the reference.

Functions that are not defined here are the reference's own: small, and differentiable as they are.
"""
