"""What fopru does with each of the types of model that transformers asks about pictures."""

from __future__ import annotations

from transformers import CONFIG_MAPPING, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

from fopru.families.base import Family
from fopru.families.generic import Generic

OWN, GENERIC, NONE = "own", "generic", "none"


def families() -> str:
    """The families with an adapter of their own, in Markdown."""
    types: dict[type[Family], list[str]] = {}
    for name, family in Family.registry.items():
        types.setdefault(family, []).append(f"`{name}`")
    rows = ["| family | `model_type` | notes |", "|---|---|---|"]
    rows += [f"| {f.title} | {', '.join(names)} | {f.notes} |" for f, names in types.items()]
    return "\n".join(rows)


def coverage() -> dict[str, tuple[str, str]]:
    """For each type that AutoModelForImageTextToText knows: "own", "generic" or "none", and its
    adapter's notes or why there is none.

    It is read from the installed transformers: from classes and their default configurations. No
    model is made. A model of a type that is found to fit can still be refused when it is used, if
    its configuration or its prompt differs.
    """
    found = {}
    for config_class, classes in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING.items():
        name = config_class.model_type
        if name in Family.registry:
            found[name] = OWN, Family.registry[name].notes
            continue
        config = CONFIG_MAPPING[name]()
        if getattr(config, "image_token_id", 0) is None:  # each checkpoint has its own
            config.image_token_id = 0
        kind = classes[0] if isinstance(classes, tuple) else classes
        why = Generic.refusal(kind, config)
        found[name] = (GENERIC, Generic.notes) if why is None else (NONE, why)
    return dict(sorted(found.items()))


def table() -> str:
    """`coverage` in Markdown, one row a type."""
    words = {OWN: "its own", GENERIC: "generic", NONE: "none"}
    rows = ["| `model_type` | adapter | notes |", "|---|---|---|"]
    rows += [f"| `{name}` | {words[kind]} | {why} |" for name, (kind, why) in coverage().items()]
    return "\n".join(rows)
