"""The scenes of the problems and their people."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Scene:
    place: str
    things: tuple[str, ...]
    box: str
    boxes: str


@dataclass(frozen=True)
class Person:
    name: str
    he: str
    him: str
    his: str


SCENES = (
    Scene("at the market", ("apples", "pears", "lemons", "oranges"), "crate", "crates"),
    Scene("at school", ("pencils", "books", "rulers", "crayons"), "box", "boxes"),
    Scene("in the garden", ("roses", "tulips", "seeds", "plants"), "pot", "pots"),
    Scene("in the kitchen", ("cookies", "muffins", "eggs", "pies"), "tray", "trays"),
    Scene("in the playroom", ("marbles", "blocks", "cars", "dolls"), "basket", "baskets"),
    Scene("on the beach", ("shells", "stones", "corals", "pebbles"), "bucket", "buckets"),
    Scene("at the fair", ("tickets", "prizes", "balloons", "tokens"), "bag", "bags"),
    Scene("in the attic", ("stamps", "coins", "letters", "photos"), "album", "albums"),
    Scene("on the farm", ("carrots", "potatoes", "melons", "onions"), "sack", "sacks"),
    Scene("in the workshop", ("nails", "screws", "bolts", "hooks"), "tin", "tins"),
    Scene("in the studio", ("beads", "buttons", "ribbons", "brushes"), "jar", "jars"),
    Scene("by the lake", ("feathers", "acorns", "leaves", "flowers"), "case", "cases"),
)

_WOMEN = ("Mia", "Anna", "Lucy", "Emma", "Nora", "Sara", "Julia", "Clara", "Rosa", "Ida")
_MEN = ("Leo", "Tom", "Ben", "Max", "Omar", "Paul", "Hugo", "Ivan", "Carl", "Noah")

PEOPLE = tuple(Person(name, "she", "her", "her") for name in _WOMEN) + tuple(
    Person(name, "he", "him", "his") for name in _MEN
)
