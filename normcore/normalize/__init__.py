"""A function per normalization, grouped by what a statistic spans. Common to all:

- x is of any real dtype and is not changed; floating types come back as they are, integers and bool as float32. All is
  computed in float64 and rounded once.
- mask is bool, of x's rank, and broadcasts to x (`padding.to_mask` makes one). Where it is False, x is in no statistic
  and stays as it is; so does a group in which nothing is real.
- A divisor of exactly 0 (a constant, and eps = 0) divides as 1, so constants give exactly 0, or the bias.
- Empty tensors give empty tensors.
"""
