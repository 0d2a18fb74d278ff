"""What can be wrong with values handed to the engine.

    NormcoreError            `argument` is the argument's name, `sentence` what follows it
    ├── ShapeMismatch        sizes or ranks do not fit one another
    ├── NonFinite            NaN or infinities; `count` of them, the first at `first_index`
    ├── InvalidParameter     a value outside its range, or of the wrong type
    ├── NothingSeen          statistics asked for where feature `feature` has none yet
    ├── TooFewValues         feature `feature` has too few values for the statistic
    └── NoInverse            the normalization cannot be undone at feature `feature`

Each sentence says what was received, what was expected, and the remedy where there is one. The errors know neither
requests nor status codes.
"""

from __future__ import annotations


class NormcoreError(ValueError):
    """An argument does not fit. `str()` is the argument's name and the sentence."""

    def __init__(self, argument: str, sentence: str) -> None:
        joint = "" if sentence.startswith((".", "[")) else " "
        super().__init__(f"{argument}{joint}{sentence}")
        self.argument = argument
        self.sentence = sentence


class ShapeMismatch(NormcoreError):
    """Sizes or ranks do not fit one another."""


class NonFinite(NormcoreError):
    """Values are NaN or infinite."""

    def __init__(self, argument: str, count: int, first_index: tuple[int, ...]) -> None:
        super().__init__(
            argument,
            f"has {count} values that are NaN or infinite, the first at {list(first_index)}; "
            "expected finite values, a mask that leaves them out, or nan_policy='omit'",
        )
        self.count = count
        self.first_index = first_index


class InvalidParameter(NormcoreError):
    """A value is outside its range, or of the wrong type."""


class NothingSeen(NormcoreError):
    """Statistics were asked for where a feature has none yet."""

    def __init__(self, feature: int) -> None:
        super().__init__("statistics", f"of feature {feature} are asked for, which has seen nothing; update first")
        self.feature = feature


class TooFewValues(NormcoreError):
    """A feature has too few values for the statistic."""

    def __init__(self, argument: str, feature: int, count: float, expected: str) -> None:
        super().__init__(argument, f"has a count of {count:g} in feature {feature}; expected {expected}")
        self.feature = feature
        self.count = count


class NoInverse(NormcoreError):
    """The normalization maps all values of a feature to one, which cannot be undone."""

    def __init__(self, argument: str, feature: int) -> None:
        super().__init__(argument, f"[{feature}] is 0, which cannot be undone; expected values other than 0")
        self.feature = feature
