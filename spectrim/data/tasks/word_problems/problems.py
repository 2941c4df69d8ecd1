"""Word problems: a skeleton drawn for a split, numbers drawn for it, words put around."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from spectrim.data.tasks.example import TaskExample
from spectrim.data.tasks.word_problems import arithmetic
from spectrim.data.tasks.word_problems.arithmetic import EVENT_PARTS, QUESTION_PARTS, Move
from spectrim.data.tasks.word_problems.rng import between, generator, one_of
from spectrim.data.tasks.word_problems.scenes import PEOPLE, SCENES, Scene
from spectrim.data.tasks.word_problems.sentences import EVENTS, OPENINGS, QUESTIONS
from spectrim.data.tasks.word_problems.splits import SPLITS, split_of_numbers, split_of_template
from spectrim.errors import InputError

FEWEST_STEPS, MOST_STEPS = 2, 4
_ATTEMPTS = 60
_NEED_FRIEND = {"with_friend", "ahead_of_friend"}
_NEW_FRIEND = {"with_another"}


@dataclass(frozen=True)
class Form:
    """A sentence: what happens in it and which of its wordings is used."""

    kind: str
    wording: int


@dataclass(frozen=True)
class Template:
    """The skeleton of a problem, without numbers, names and things."""

    scene: int
    opening: Form
    events: tuple[Form, ...]
    question: Form

    @property
    def key(self) -> str:
        forms = (self.opening, *self.events, self.question)
        return f"{self.scene} " + " ".join(f"{form.kind}:{form.wording}" for form in forms)


@dataclass(frozen=True)
class Problem:
    template: Template
    numbers: tuple[int, ...]
    example: TaskExample


def word_problems(split: str, count: int, seed: int = 0) -> list[TaskExample]:
    """Return `count` different problems of a split, answers in GSM8K's form with `#### n`.

    A problem of one split shares neither its template (scene, order of the operations, the
    wording of each, question) nor its tuple of numbers with any problem of another. The same
    arguments give the same problems on every machine. `prompt + answer` is the text to learn.

    Raises InputError for an unknown split or a count below one.
    """
    return [problem.example for problem in draw_problems(split, count, seed)]


def draw_problems(split: str, count: int, seed: int = 0) -> list[Problem]:
    """Return the problems with their templates and numbers. Raises InputError."""
    if split not in SPLITS:
        raise InputError(f"no split '{split}' of word problems; there are {', '.join(SPLITS)}")
    if count < 1:
        raise InputError(f"{count} word problems asked for; ask for at least one")
    random = generator(f"word problems {split} {seed}")
    found: dict[str, Problem] = {}
    while len(found) < count:
        problem = _problem(random, split)
        if problem is not None:
            found.setdefault(problem.example.prompt, problem)
    return list(found.values())


def _problem(random: Random, split: str) -> Problem | None:
    template = _template(random)
    if template is None or split_of_template(template.key) != split:
        return None
    for _ in range(_ATTEMPTS):
        moves = _moves(random, template)
        if moves is None:
            continue
        numbers = tuple(n for move in moves for n in move.numbers)
        if split_of_numbers(numbers) == split:
            return Problem(template, numbers, _example(random, template, moves))
    return None


def _template(random: Random) -> Template | None:
    """Return a skeleton of two to four steps; None if the drawn parts do not fit together."""
    opening, question = _form(random, OPENINGS), _form(random, QUESTIONS)
    friend = opening.kind.endswith("_friend")
    if (question.kind in _NEED_FRIEND and not friend) or (
        question.kind in _NEW_FRIEND and friend
    ):
        return None
    room = between(random, FEWEST_STEPS, MOST_STEPS)
    room -= (opening.kind != "has") + (question.kind != "now")
    events = []
    while room > 0:
        event = _form(random, EVENTS)
        room -= 2 if event.kind.endswith("_groups") else 1
        events.append(event)
    if room < 0 or not events:
        return None
    return Template(between(random, 0, len(SCENES) - 1), opening, tuple(events), question)


def _form(random: Random, forms: dict[str, tuple[str, ...]]) -> Form:
    kind = one_of(random, list(forms))
    return Form(kind, between(random, 0, len(forms[kind]) - 1))


def _moves(random: Random, template: Template) -> list[Move] | None:
    first, ledger = arithmetic.opening(template.opening.kind, random)
    moves = [first]
    parts = [EVENT_PARTS[event.kind] for event in template.events]
    for part in (*parts, QUESTION_PARTS[template.question.kind]):
        move = part(random, ledger)
        if move is None:
            return None
        moves.append(move)
        ledger = ledger.after(move.steps)
    return moves


def _example(random: Random, template: Template, moves: list[Move]) -> TaskExample:
    words = _words(random, SCENES[template.scene])
    sentences = (
        OPENINGS[template.opening.kind][template.opening.wording],
        *(EVENTS[event.kind][event.wording] for event in template.events),
        QUESTIONS[template.question.kind][template.question.wording],
    )
    told = [
        sentence.format(**words, **dict(zip("ab", move.numbers, strict=False)))
        for sentence, move in zip(sentences, moves, strict=True)
    ]
    steps = [step for move in moves for step in move.steps]
    final = str(steps[-1].result)
    worked = "\n".join(str(step) for step in steps)
    return TaskExample(" ".join(told) + "\n", f"{worked}\n#### {final}", final)


def _words(random: Random, scene: Scene) -> dict[str, str]:
    person, friend = one_of(random, PEOPLE), one_of(random, PEOPLE)
    while friend == person:
        friend = one_of(random, PEOPLE)
    return {
        "name": person.name,
        "friend": friend.name,
        "he": person.he,
        "He": person.he.capitalize(),
        "him": person.him,
        "His": person.his.capitalize(),
        "things": one_of(random, scene.things),
        "box": scene.box,
        "boxes": scene.boxes,
        "place": scene.place,
        "Place": scene.place.capitalize(),
    }
