"""Read params.yaml and turn every mistake in it into one line that names key, value and what is allowed."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from fairquant import plugins
from fairquant.config.schema import Config
from fairquant.config.yaml_core import read_yaml
from fairquant.errors import ConfigError

PLAIN_WORDS = {
    "string_type": "text",
    "bool_type": "true | false",
    "bool_parsing": "true | false",
    "dict_type": "a mapping of options",
    "invalid_key": "text as key",
}
"""What some of pydantic's errors allow, in the words of params.yaml."""


def load_config(path: str | Path = "params.yaml", *, meta: str | Path | None = "data/prepared/meta.json") -> Config:
    """Read, validate and freeze ``path``.

    Combinations that need the names of groups or classes (``reducer: subtractive`` on other than two groups) are
    checked as soon as ``meta`` exists. Raises ``ConfigError`` with all mistakes on one line.
    """
    config = parse_config(_read_yaml(Path(path)), source=str(path))
    if meta is not None and Path(meta).exists():
        check_groups(config, _names(Path(meta), "groups"), source=str(path))
        if config.evaluate.postprocess:
            check_classes(config.evaluate.postprocess, _names(Path(meta), "classes"), source=str(path))
    return config


def parse_config(raw: Any, *, source: str = "params.yaml") -> Config:
    """Validate the mapping ``raw`` as a whole; ``source`` names it in errors."""
    if not isinstance(raw, dict):
        raise ConfigError(f"{source}: got {_shown(raw)}; allowed: a mapping of sections")
    values = {str(key): value for key, value in raw.items()}
    mistakes = _option_mistakes(values)
    try:
        config = Config(**values)
    except ValidationError as error:
        mistakes = [_describe(Config, item) for item in _first_per_key(error)] + mistakes
    if mistakes:
        raise ConfigError(f"{source}: " + "; ".join(mistakes))
    for kind, name in (("dataset", config.data.name), ("reducer", config.reducer)):
        _run_check(kind, name, "check_options", source, config.options(kind, name))
    return config


def check_groups(config: Config, groups: list[str], *, source: str = "params.yaml") -> None:
    """Let the chosen reducer refuse a set of groups it cannot work with."""
    if config.importance.by == "group":
        options = config.options("reducer", config.reducer)
        _run_check("reducer", config.reducer, "check_groups", source, options, groups)


def check_classes(methods: Sequence[str], classes: Sequence[str], *, source: str = "params.yaml") -> None:
    """Refuse post-processing of other than two classes: it decides between positive and negative."""
    if methods and len(classes) != 2:
        raise ConfigError(
            f"{source}: evaluate.postprocess: got {list(methods)} for {len(classes)} classes; "
            "allowed: two classes, or [] (no post-processing)"
        )


def _run_check(kind: str, name: str, check: str, source: str, *arguments: Any) -> None:
    """Call the plug-in's function ``check`` where it has one."""
    try:
        getattr(plugins.load(kind, name), check, lambda *_: None)(*arguments)
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from None


def _names(meta: Path, key: str) -> list[str]:
    """Return the names of the prepared data's groups or classes."""
    try:
        return [str(name) for name in json.loads(meta.read_text(encoding="utf-8"))[key]]
    except (ValueError, KeyError, TypeError):
        raise ConfigError(f"{meta}: not a prepared data set's meta.json; allowed: what prepare writes") from None


def _read_yaml(path: Path) -> Any:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: not found; run from the folder that holds params.yaml") from None
    except OSError as error:
        raise ConfigError(f"{path}: not readable ({error.strerror}); allowed: a YAML file") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from None
    return read_yaml(text, source=str(path))


def _option_mistakes(values: Mapping[str, Any]) -> list[str]:
    """Validate every plug-in's options, also of those not chosen, so that no typing mistake waits for its turn."""
    sections = ("assign", "importance", "quantize", "evaluate")
    assign, importance, quantize, evaluate = (values.get(section) for section in sections)
    tables = (
        ("datasets", "dataset", values.get("datasets")),
        ("importance.metrics", "importance", importance.get("metrics") if isinstance(importance, dict) else None),
        ("assign.reducers", "reducer", assign.get("reducers") if isinstance(assign, dict) else None),
        ("quantize.losses", "loss", quantize.get("losses") if isinstance(quantize, dict) else None),
        (
            "evaluate.postprocessors",
            "postprocess",
            evaluate.get("postprocessors") if isinstance(evaluate, dict) else None,
        ),
    )
    mistakes = []
    for key, kind, table in tables:
        for name, given in table.items() if isinstance(table, dict) else ():
            allowed = plugins.names(kind)
            if name not in allowed:
                hint = _hint(name, allowed)
                mistakes.append(f"{key}.{name}: unknown key{hint}, got {_shown(given)}; allowed: {' | '.join(allowed)}")
            elif isinstance(given, dict):
                options = plugins.load(kind, name).Options
                try:
                    options(**{str(option): value for option, value in given.items()})
                except ValidationError as error:
                    mistakes += [f"{key}.{name}.{_describe(options, item)}" for item in _first_per_key(error)]
    return mistakes


def _first_per_key(error: ValidationError) -> list[Any]:
    """One error per key: a union reports each of its members, the first says enough."""
    seen: dict[tuple[Any, ...], Any] = {}
    for item in error.errors(include_url=False):
        seen.setdefault(tuple(part for part in item["loc"] if not _is_union_tag(part)), item)
    return list(seen.values())


def _is_union_tag(part: object) -> bool:
    return isinstance(part, str) and (part in {"int", "float", "str"} or "[" in part)


def _describe(model: type[BaseModel], error: Any) -> str:
    """Write one pydantic error as ``key: got value; allowed: what``."""
    loc = [part for part in error["loc"] if not _is_union_tag(part)]
    key = ".".join(str(part) for part in loc)
    got = _shown(error["input"])
    if error["type"] == "value_error":
        text = str(error["ctx"]["error"])
        return text if "; allowed: " in text else f"{key}: got {got}; allowed: {text}"
    if error["type"] == "extra_forbidden":
        fields = sorted(_section(model, loc[:-1]).model_fields)
        return f"{key}: unknown key{_hint(loc[-1], fields)}, got {got}; allowed: {' | '.join(fields)}"
    return f"{key}: got {got}; allowed: {_allowed(model, loc, error)}"


def _shown(value: Any) -> str:
    """Write a value as YAML's reader sees it, cut where it is long."""
    constants = {None: "null", True: "true", False: "false"}
    text = constants[value] if value is None or isinstance(value, bool) else repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _hint(name: object, allowed: Iterable[str]) -> str:
    close = difflib.get_close_matches(str(name), list(allowed), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def _allowed(model: type[BaseModel], loc: list[Any], error: Any) -> str:
    kind = error["type"]
    if kind == "literal_error":
        return str(error["ctx"]["expected"]).replace("'", "").replace(" or ", " | ").replace(", ", " | ")
    names = [part for part in loc if isinstance(part, str)]
    field = _section(model, names[:-1]).model_fields.get(names[-1]) if names else None
    described = _description(field, of_item=len(names) < len(loc))
    if kind in {"model_type", "model_attributes_type"}:
        return f"a section with the keys {' | '.join(sorted(_section(model, names).model_fields))}"
    if kind in {"int_parsing", "int_type", "int_from_float"} and described:
        return described.replace("a number", "a whole number")
    return described or PLAIN_WORDS.get(kind) or str(error["msg"]).removeprefix("Input should be ")


def _description(field: FieldInfo | None, *, of_item: bool) -> str | None:
    """Return what a field says it allows, or what its items allow."""
    if field is None or not of_item:
        return field.description if field is not None else None
    for item in get_args(field.annotation):
        for note in getattr(item, "__metadata__", ()):
            if isinstance(note, FieldInfo) and note.description:
                return note.description
    return None


def _section(model: type[BaseModel], path: list[Any]) -> type[BaseModel]:
    """Follow section names down to the model that holds the key."""
    for name in path:
        field = model.model_fields.get(str(name))
        if field is None or not (isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)):
            return model
        model = field.annotation
    return model
