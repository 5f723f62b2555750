"""The edits of a run that is shown, with undo and redo."""

from dataclasses import dataclass, field

from analysis import AnalysisError
from analysis.debug.edits import MOST_EDITS, Edit


@dataclass
class EditList:
    """The edits of one run, with undo and redo.

    Attributes:
        edits: in force, if they fit.
        unread: why the edits of a link cannot be read.
        mistake: why the edit that was added last cannot be made.
    """

    edits: list[Edit] = field(default_factory=list)
    unread: AnalysisError | None = None
    mistake: AnalysisError | None = None
    _before: list[list[Edit]] = field(default_factory=list)
    _after: list[list[Edit]] = field(default_factory=list)

    def change(self, edits: list[Edit]) -> None:
        """Set the edits; the old ones can be restored."""
        self.mistake = None
        if len(edits) > MOST_EDITS:
            self.mistake = AnalysisError(
                "There are {most} edits in force, and no more fit into a link; remove one first.", most=MOST_EDITS
            )
        elif edits != self.edits:
            self._before.append(self.edits)
            self._after.clear()
            self.edits = list(edits)

    @property
    def can_undo(self) -> bool:
        """Whether there is a change to undo."""
        return bool(self._before)

    @property
    def can_redo(self) -> bool:
        """Whether there is a change to redo."""
        return bool(self._after)

    def undo(self) -> None:
        """Restore the edits before the last change."""
        if self._before:
            self._after.append(self.edits)
            self.edits = self._before.pop()

    def redo(self) -> None:
        """Make the change again that was undone last."""
        if self._after:
            self._before.append(self.edits)
            self.edits = self._after.pop()
