"""The rules that come with the app, and what they are called in the visitor's language."""

from functools import cache

from analysis import AnalysisError
from analysis.debug.rules import Rule, load_rule
from app.strings import LANGUAGES, say, table
from subllm.assets import ASSETS


@cache
def shipped() -> dict[str, Rule]:
    """The shipped rules, by the stem of their file."""
    return {path.stem: load_rule(path) for path in sorted((ASSETS / "rules").glob("*.json"))}


def stem_of(name: str) -> str | None:
    """Stem of the shipped rule of this name; None if there is none."""
    return next((stem for stem, rule in shipped().items() if rule.name == name), None)


def rule_name(name: str) -> str:
    """What a rule is called on screen: its name, or that of a shipped rule in the visitor's language."""
    stem = stem_of(name)
    return name if stem is None else say(f"rule_{stem}")


def rule_description(rule: Rule) -> str:
    """What a rule does, in the visitor's language if it is a shipped one."""
    stem = stem_of(rule.name)
    return rule.description if stem is None else say(f"rule_about_{stem}")


def check_name(rule: Rule) -> None:
    """See that a visitor's rule cannot be taken for another one.

    Raises:
        AnalysisError: if its name is that of a shipped rule or of none, in any language.
    """
    taken = {table(each)[key] for each in LANGUAGES for key in ("rule_none", *(f"rule_{stem}" for stem in shipped()))}
    if rule.name.strip().casefold() in {name.casefold() for name in taken}:
        raise AnalysisError(
            "The name {name!r} is that of a rule of this app. Give your rule another name.", name=rule.name
        )
