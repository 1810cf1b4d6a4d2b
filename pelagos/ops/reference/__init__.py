"""The definition of every op in plain PyTorch.

The same row in gives the same row out, bit for bit, whatever stands beside it. Three rules keep it so:

1. every matrix product goes through ``row_products.matmul_rows``: fixed tiles of rows, fixed blocks of columns;
2. every other sum goes through ``ordered_sum``, a fixed tree over the summed dimension; sampling, which needs running
   sums anyway, adds in order, in float64;
3. of the elementwise functions only those are used whose vector and scalar code agree (exp, log1p, cos, sin, sqrt);
   torch's sigmoid, silu and softplus differ in the last bit between the two (see ``elementwise``).
"""
