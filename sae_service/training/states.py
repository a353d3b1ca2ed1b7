"""The states of a job's SAEs while it trains, in the groups in which they are stepped."""

from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass

import jax

from sae_service.training import stacked
from sae_service.training.grouping import Group
from sae_service.training.step import Numbers, Served, TrainState


@dataclass
class Stepped:
    """A group in training: the numbers and the state of its only SAE, or those of all of them, `stacked`."""

    group: Group
    numbers: Numbers
    state: TrainState

    def step(self, served: Served) -> None:
        """One step of each."""
        cohort, way = self.group.cohort, self.group.way
        if way == "alone":
            self.state = cohort.step(self.state, self.numbers, served)
        else:
            self.state = cohort.step_all(way, self.state, self.numbers, served)


class States(MutableMapping[str, TrainState]):
    """The state of each SAE by its name, as if it were there for itself: one of several in a group is a copy.

    Between two steps all states of a group stay one tree. To put them together and take them apart in each step would take
    about as long as to step small SAEs one by one.
    """

    def __init__(self, groups: Sequence[Group], states: MutableMapping[str, TrainState], numbers: Mapping[str, Numbers]) -> None:
        """Takes the SAEs of the groups out of `states`."""
        self.groups: list[Stepped] = []
        self._places: dict[str, tuple[Stepped, int]] = {}
        for group in groups:
            found = [states.pop(name) for name in group.names]
            given = [numbers[name] for name in group.names]
            is_one = group.way == "alone"
            stepped = Stepped(group, *((given[0], found[0]) if is_one else (stacked.stacked(given), stacked.stacked(found))))
            self.groups.append(stepped)
            self._places |= {name: (stepped, index) for index, name in enumerate(group.names)}

    def __getitem__(self, name: str) -> TrainState:
        stepped, index = self._places[name]
        return stepped.state if stepped.group.way == "alone" else stacked.nth(stepped.state, index)

    def __setitem__(self, name: str, state: TrainState) -> None:
        stepped, index = self._places[name]
        stepped.state = state if stepped.group.way == "alone" else stacked.with_nth(stepped.state, index, state)

    def __delitem__(self, name: str) -> None:
        raise TypeError("the SAEs of a job stay the same")

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def clear(self) -> None:
        """Frees all."""
        self.groups.clear()
        self._places.clear()

    def block_until_ready(self) -> "States":
        """Waits for what is being computed; `jax.block_until_ready` calls it."""
        jax.block_until_ready([stepped.state for stepped in self.groups])
        return self
