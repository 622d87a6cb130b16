"""How settings name a rule and its options: a text, a mapping, or a YAML file that holds a mapping.

```
routers=[lor,"lor_hybrid:a=0.7"]
routers=[lor,{name:lor_hybrid,a:0.7}]
routers=[lor,runs/mine/router.yaml]
```

An option that is a rule with options of its own stands in brackets, or is a mapping in a mapping:
``smg_veto:rule=(llmd_default:queue=3,kv=1)``.

The path of an exported policy, ``policy.npz``, stands for a rule too; its title is the file's name.

The option ``title`` is no option of the rule: tables and pictures call it so.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from llmroute_gym.errors import InputError, shown

TITLE = "title"
"""The option that only says what tables call a rule."""
FILES = (".yaml", ".yml")
"""What the path of a file that holds a rule ends in."""
POLICY_SUFFIX = ".npz"
"""The same of one that holds an exported policy."""


def parsed_rule(rule: str | Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Returns a rule's name and its options, ``title`` among them if there is one.

    Raises:
        InputError: it is neither a text nor a mapping with a name, is malformed, or is a file that
            cannot be read.
    """
    if isinstance(rule, str) and rule.endswith(POLICY_SUFFIX) and ":" not in rule:
        return rule, {TITLE: Path(rule).stem}
    if isinstance(rule, str) and rule.endswith(FILES):
        rule = _read(Path(rule))
    if isinstance(rule, str):
        name, colon, given = rule.partition(":")
        pairs = [one.partition("=") for one in _split(given)] if colon else []
        options = {key.strip(): _value(rule, key, sign, value) for key, sign, value in pairs}
        if rule.count("(") != rule.count(")"):
            raise InputError(f"{shown(rule)} opens a bracket that it does not close")
        if len(options) < len(pairs):
            raise InputError(f"{shown(rule)} gives an option twice; give it once")
        return name.strip(), options
    if isinstance(rule, Mapping) and isinstance(rule.get("name"), str):
        return str(rule["name"]), {str(key): rule[key] for key in rule if key != "name"}
    raise InputError(
        f"a router is a name, such as lor, or a name with options, such as lor_hybrid:a=0.7 or "
        f"{{name: lor_hybrid, a: 0.7}}, got {shown(rule)}"
    )


def _split(given: str) -> list[str]:
    """Splits at the commas that stand in no brackets."""
    parts, depth = [""], 0
    for letter in given:
        depth += (letter == "(") - (letter == ")")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return parts


def _read(file: Path) -> Mapping[str, Any]:
    try:
        held = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise InputError(
            f"cannot read the router {file}: {reason}; give a file such as "
            "python -m llmroute_gym.search writes"
        ) from error
    if not isinstance(held, Mapping) or not isinstance(held.get("name"), str):
        raise InputError(
            f"{file} holds no router; it is a mapping with the rule's name and its options, such "
            "as {name: lor_hybrid, a: 0.7}"
        )
    return held


def _value(rule: str, key: str, sign: str, value: str) -> Any:
    if not (key.strip() and sign and value.strip()):
        raise InputError(
            f"{shown(rule)} is no router with options; write name:option=value,option=value"
        )
    value = value.strip()
    if value.startswith("(") and value.endswith(")"):
        return value[1:-1]
    try:
        return yaml.safe_load(value)
    except yaml.YAMLError:
        return value


def rule_text(rule: str | Mapping[str, Any]) -> str:
    """Returns a rule as one text, the same for both of its forms; tables call it so.

    Raises:
        InputError: as `parsed_rule`.
    """
    name, options = parsed_rule(rule)
    title = str(options.get(TITLE, name))
    if not title.strip() or set(title) & set(",:=()"):
        raise InputError(
            f"the title of {name} must be a text without commas, colons, brackets and equals "
            f"signs, got {shown(title)}"
        )
    given = ",".join(f"{key}={_text(value)}" for key, value in options.items())
    return f"{name}:{given}" if given else name


def rule_title(rule: str | Mapping[str, Any]) -> str:
    """Returns what tables call a rule: its ``title``, or else its text.

    Raises:
        InputError: as `parsed_rule`.
    """
    return str(parsed_rule(rule)[1].get(TITLE, rule_text(rule)))


def rule_texts(rules: Any) -> Any:
    """Returns the rules of a list as texts; what is no list is left to whoever checks it."""
    return [rule_text(one) for one in rules] if isinstance(rules, list | tuple) else rules


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        value = rule_text(value)
    if isinstance(value, str) and ":" in value:
        return f"({value})"
    return str(value).lower() if isinstance(value, bool) else str(value)
