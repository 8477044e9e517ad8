"""Which kernel variant and tiling runs an operation; uses what ``gpuconv tune`` has measured."""

from gpuconv.tuning.choice import (
    COMPOSED,
    ENVIRONMENT_VARIABLE,
    RULES,
    Choice,
    Rule,
    allow_tf32,
    candidates,
    choose,
    computed_in,
    place_of,
    use_variant,
    wish,
)

__all__ = [
    "COMPOSED",
    "ENVIRONMENT_VARIABLE",
    "RULES",
    "Choice",
    "Rule",
    "allow_tf32",
    "candidates",
    "choose",
    "computed_in",
    "place_of",
    "use_variant",
    "wish",
]
