"""Whose jobs a store makes and shows."""

from dataclasses import dataclass

import sqlalchemy as sa

from sae_service.jobs import tables

DEFAULT_PROJECT = "default"


@dataclass(frozen=True)
class Owner:
    """The project that new jobs belong to, and the name of the key that asks for them, if any."""

    project: str = DEFAULT_PROJECT
    submitter: str | None = None
    sees_all: bool = True
    """Whether the jobs of other projects are shown too."""

    @property
    def may_see(self) -> sa.ColumnElement[bool]:
        """The condition that a job is shown."""
        return sa.true() if self.sees_all else tables.jobs.c.project == self.project
