"""Training: data, objective, optimizer, the loop. The model is that of inference, on ops with gradients."""
