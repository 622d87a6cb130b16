"""How settings name a rule and its options: ``lor_hybrid:a=0.7``, or a mapping that says the same.

```
routers=[lor,"lor_hybrid:a=0.7"]
routers=[lor,{name:lor_hybrid,a:0.7}]
```

An option that is a rule with options of its own stands in brackets, or is a mapping in a mapping:
``smg_veto:rule=(llmd_default:queue=3,kv=1)``.
"""

from collections.abc import Mapping
from typing import Any

import yaml

from llmroute_gym.errors import InputError, shown


def parsed_rule(rule: str | Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Returns a rule's name and its options.

    Raises:
        InputError: it is neither a text nor a mapping with a name, or is malformed.
    """
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
    given = ",".join(f"{key}={_text(value)}" for key, value in options.items())
    return f"{name}:{given}" if given else name


def rule_texts(rules: Any) -> Any:
    """Returns the rules of a list as texts; what is no list is left to whoever checks it."""
    return [rule_text(one) for one in rules] if isinstance(rules, list | tuple) else rules


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        value = rule_text(value)
    if isinstance(value, str) and ":" in value:
        return f"({value})"
    return str(value).lower() if isinstance(value, bool) else str(value)
