"""YAML as DVC reads and writes it: version 1.2 (YAML 1.2.2, section 10.3), where ``off`` is text.

PyYAML reads version 1.1. There ``off`` and ``no`` are false, 12:30 is 750 and 010 is 8, so that ``dvc exp run -S
pretrain.augment=off``, which writes the word without quotes, would come back as false.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

from fairquant.errors import ConfigError

MOST_DIGITS = 400
"""Digits of the longest whole number that is read; no setting takes one of more than 19."""
_UNWRITABLE = re.compile("[\0\ud800-\udfff]")


class _Loader(yaml.SafeLoader):
    """The core schema: null, true and false, numbers; everything else is text, also dates. No key stands twice."""

    yaml_implicit_resolvers: dict[str, Any] = {}

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Refuse a key that stands twice: one of its values would be lost."""
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.composer.ComposerError(None, None, f"the key {key.value!r} stands twice", key.start_mark)
                seen.add(key.value)
        return node

    def compose_scalar_node(self, anchor: Any) -> yaml.ScalarNode:
        """Refuse what no file name and no terminal takes: NUL and halves of surrogate pairs."""
        node: yaml.ScalarNode = super().compose_scalar_node(anchor)
        if bad := _UNWRITABLE.search(node.value):
            raise yaml.composer.ComposerError(None, None, f"the character {bad[0]!a}", node.start_mark)
        return node

    def construct_whole(self, node: yaml.ScalarNode) -> int:
        """Read a whole number: decimal, 0o octal or 0x hexadecimal; ``_`` may part its digits."""
        text = str(self.construct_scalar(node)).replace("_", "").lower()
        sign, digits = (text[0], text[1:]) if text[0] in "+-" else ("", text)
        base = {"0o": 8, "0x": 16}.get(digits[:2], 10)
        if len(digits) > MOST_DIGITS:
            raise yaml.constructor.ConstructorError(None, None, f"a number of {len(digits)} digits", node.start_mark)
        return int(sign + (digits if base == 10 else digits[2:]), base)


_SCALARS = (
    ("null", r"(?:~|null|Null|NULL|)", "~nN\0"),
    ("bool", r"(?:true|True|TRUE|false|False|FALSE)", "tTfF"),
    ("int", r"(?:[-+]?[0-9][0-9_]*|0o[0-7][0-7_]*|0x[0-9a-fA-F][0-9a-fA-F_]*)", "-+0123456789"),
    ("float", r"(?:[-+]?(?:\.[0-9]+|[0-9][0-9_]*(?:\.[0-9_]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)"
     r"|\.(?:nan|NaN|NAN))", "-+.0123456789"),
    ("merge", r"(?:<<)", "<"),
)  # fmt: skip


class _Dumper(yaml.SafeDumper):
    """Quotes every text that either version of YAML would take for something else."""

    yaml_implicit_resolvers = {first: list(known) for first, known in yaml.SafeDumper.yaml_implicit_resolvers.items()}


for _tag, _pattern, _first in _SCALARS:
    for _class in (_Loader, _Dumper):
        firsts = ["" if sign == "\0" else sign for sign in _first]
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^{_pattern}$"), firsts)
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_whole)


def read_yaml(text: str, *, source: str) -> Any:
    """Return what the YAML document ``text`` holds; ``source`` names it in errors.

    >>> read_yaml("{augment: off, lr: 1e-3, ok: true, day: 2026-02-30}", source="params.yaml")
    {'augment': 'off', 'lr': 0.001, 'ok': True, 'day': '2026-02-30'}

    Raises:
        ConfigError: it is no YAML, a key stands twice, or a value is not of the type its tag says.
    """
    try:
        return yaml.load(text, Loader=_Loader)  # it is a SafeLoader
    except RecursionError:
        reason = "brackets within brackets, too deep to read"
    except (yaml.YAMLError, ValueError, TypeError, KeyError, AttributeError) as error:  # the latter four: false tags
        reason = " ".join(str(error).split())
    raise ConfigError(f"{source}: not valid YAML: {reason}")


def write_yaml(values: Any) -> str:
    r"""Return ``values`` as a YAML document that ``read_yaml``, DVC and readers of version 1.1 take alike.

    >>> write_yaml({"augment": "off", "title": "1e-3"})
    "augment: 'off'\ntitle: '1e-3'\n"
    """
    return str(yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True))
