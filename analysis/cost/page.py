"""The Markdown page of a table that was measured."""


def page(title: str, about: str, table: str, facts: dict[str, str]) -> str:
    """Title, how it was measured, table, and facts about machine and run."""
    return f"# {title}\n\n{about}\n\n{table}\n\n{listed(facts)}\n"


def listed(facts: dict[str, str]) -> str:
    """Facts about machine and run, as a list."""
    return "\n".join(f"- {key}: {value}" for key, value in facts.items())
