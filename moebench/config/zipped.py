"""Zipped axes: keys that are swept together, as in `model.num_experts:model.top_k=8:1,16:2`.

The keys are joined by colons, and so are the values of each run; commas separate the runs. Hydra's
grammar has no such sweep. Each value is one of its grammar.
"""

from moebench.errors import ConfigError

OPENING, CLOSING, QUOTES = "([{", ")]}", "'\""


def keys_of(override: str) -> tuple[str, ...]:
    """The keys that an override sets: several for a zipped one."""
    key = override.split("=", 1)[0]
    return tuple(key.split(":")) if is_zipped(override) else (key,)


def is_zipped(override: str) -> bool:
    """Whether an override joins keys by colons. After @, Hydra has another use of a colon."""
    key, equals, _ = override.partition("=")
    return bool(equals) and ":" in key and "@" not in key


def rows_of(override: str) -> list[tuple[str, ...]]:
    """The runs of a zipped override: for each, an override of every key.

    Raises ConfigError if a run has more or fewer values than there are keys.
    """
    keys = keys_of(override)
    rows = []
    for texts in _split(override.partition("=")[2], ","):
        values = _split(texts, ":")
        if len(values) != len(keys) or not all(keys):
            raise ConfigError(
                f"{override}: zips {len(keys)} keys, but {texts or 'an empty text'} is "
                f"{len(values)} value{'s' * (len(values) != 1)}; write as many values as keys, as "
                "in KEY:KEY=1:2,3:4"
            )
        rows.append(tuple(f"{key}={value}" for key, value in zip(keys, values, strict=True)))
    return rows


def _split(text: str, separator: str) -> list[str]:
    """Split at a character, but not within brackets or quotes."""
    parts, depth, quote, escaped = [""], 0, "", False
    for character in text:
        if character == separator and not depth and not quote:
            parts.append("")
            continue
        if quote:
            quote = "" if character == quote and not escaped else quote
        elif character in QUOTES:
            quote = character
        depth += 0 if quote else (character in OPENING) - (character in CLOSING)
        escaped = character == "\\" and not escaped
        parts[-1] += character
    return parts
