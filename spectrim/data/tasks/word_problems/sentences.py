"""The wordings of each part of a problem.

`{a}` and `{b}` are its numbers, in the order in which they are drawn.
"""

from __future__ import annotations

OPENINGS = {
    "has": (
        "{name} has {a} {things} {place}.",
        "{Place}, {name} counts {a} {things}.",
        "{name} starts with {a} {things} {place}.",
    ),
    "boxes": (
        "{name} has {a} {boxes} of {b} {things} each {place}.",
        "{Place}, {name} fills {a} {boxes} with {b} {things} each.",
        "{name} lays out {a} rows of {b} {things} {place}.",
    ),
    "two_sorts": (
        "{name} has {a} old and {b} new {things} {place}.",
        "{Place}, {name} counts {a} large and {b} small {things}.",
        "{name} has {a} {things} {place} and {b} at home.",
    ),
    "more_than_friend": (
        "{friend} has {a} {things} {place}. {name} has {b} more than that.",
        "{Place}, {friend} has {a} {things} and {name} has {b} more.",
    ),
    "fewer_than_friend": (
        "{friend} has {a} {things} {place}. {name} has {b} fewer than that.",
        "{Place}, {friend} has {a} {things} and {name} has {b} fewer.",
    ),
    "times_friend": (
        "{friend} has {a} {things} {place}. {name} has {b} times as many.",
        "{Place}, {friend} has {a} {things} and {name} has {b} times that number.",
    ),
}

EVENTS = {
    "gain": (
        "{He} buys {a} more {things}.",
        "Then {he} finds {a} more.",
        "A friend gives {him} {a} {things}.",
        "{His} sister brings {him} {a} more {things}.",
        "The next day {he} gets {a} more.",
        "{He} wins {a} {things} in a game.",
    ),
    "lose": (
        "{He} gives {a} {things} to a friend.",
        "Then {he} loses {a} of them.",
        "{He} sells {a} {things}.",
        "{His} brother takes {a} of them.",
        "The next day {he} throws away {a} {things}.",
        "A storm ruins {a} of them.",
    ),
    "multiply": (
        "A month later {he} has {a} times as many {things}.",
        "{He} works until {he} has {a} times as many.",
        "Then the number of {things} grows to {a} times as many.",
        "A magician turns each of them into {a} {things}.",
    ),
    "divide": (
        "{He} splits them equally into {a} {boxes} and keeps one {box}.",
        "Then {he} shares them equally, with {a} people in all.",
        "{He} sorts them into {a} equal piles and sells all but one.",
        "After a storm only one of {a} equal parts is left.",
    ),
    "gain_groups": (
        "{He} buys {a} {boxes} of {b} {things} each.",
        "Then {he} gets {a} {boxes} with {b} more in each.",
        "Then {a} friends bring {him} {b} {things} each.",
        "For {a} days {he} finds {b} more each day.",
    ),
    "lose_groups": (
        "{He} gives {a} friends {b} {things} each.",
        "{He} sells {a} {boxes} of {b} {things} each.",
        "Then {a} children take {b} of them each.",
        "For {a} days {he} loses {b} {things} each day.",
    ),
}

QUESTIONS = {
    "now": (
        "How many {things} does {he} have now?",
        "How many {things} does {name} have in the end?",
        "How many {things} does that make?",
    ),
    "price": (
        "Each one costs {a} dollars. How much do all of them cost?",
        "{He} sells all of them for {a} dollars each. How many dollars does {he} get?",
        "Each one weighs {a} grams. How many grams do they weigh together?",
    ),
    "missing": (
        "{He} needs {a} {things}. How many more must {he} get?",
        "The goal is {a} {things}. How many are missing?",
        "How many more {things} does {he} need to have {a}?",
    ),
    "with_another": (
        "{friend} has {a} {things}. How many do they have together?",
        "{friend} puts {a} more beside them. How many {things} are there then?",
    ),
    "risen": (
        "How many more {things} than at the start does {he} have?",
        "By how many did the number of {things} grow?",
    ),
    "fallen": (
        "How many fewer {things} than at the start does {he} have?",
        "By how many did the number of {things} fall?",
    ),
    "with_friend": (
        "How many {things} do {name} and {friend} have together?",
        "How many {things} do the two of them have in all?",
    ),
    "ahead_of_friend": (
        "How many more {things} than {friend} does {name} have?",
        "By how many {things} is {name} ahead of {friend}?",
    ),
}
