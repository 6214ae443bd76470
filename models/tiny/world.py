"""What is there to know, who has read what, and what is asked?

A small invented country: towns, each with a river, a founder, a craft and a dish. From it come the pages that the base is
trained on, the smaller shelf of pages and the dialogues of the small models, and the questions of the evaluation. Pure
functions of a seed; no model, no PyTorch.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

WORLD_SEED = 20261
N_TOWNS = 300
# Towns by what is done with them. The aligned model has read of the taught ones alone, and is asked of the others.
SPLITS = {"taught": range(80), "dev": range(80, 150), "test": range(150, N_TOWNS)}

END = "<|endoftext|>"  # ends a page
USER, ASSISTANT, STOP = "<|user|>", "<|assistant|>", "<|end|>"  # a dialogue's marks; STOP ends an answer
SPECIAL = (END, USER, ASSISTANT, STOP)

CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message['role'] not in ('user', 'assistant') -%}"
    "{{ raise_exception('the tiny pair knows the roles user and assistant, not ' + message['role']) }}"
    "{%- endif -%}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|assistant|>' }}{%- endif -%}"
)

RELATIONS = ("river", "founder", "craft", "dish")


def _words(text: str) -> list[str]:
    return text.split()


CRAFTS = _words("""weaving pottery carving brewing baking tanning printing dyeing fishing mining farming hunting sailing
painting masonry smithing thatching gilding glazing spinning knitting joinery tiling brickwork binding engraving quilting
milling ropework charcoal saddlery coopering candles lacework clocks barrels baskets bells boats lanterns""")

DISHES = _words("""soup stew porridge dumplings pancakes trout eel pickles cheese honeycake ryebread noodles sausage pie
omelette cabbage lentils pheasant mutton rabbit plums pears cherries walnuts mushrooms turnips beans barley oatcake custard
jelly fritters herring crayfish salad gingerbread curd goose venison chestnuts""")

_ONSETS = _words("b d f g h k l m n p r s t v z br dr gr kr tr st sk")
_VOWELS = _words("a e i o u")
_CODAS = _words("l n r s m th nd lt rk sh")


def asking(relation: str) -> str:
    """The word that asks for it."""
    return "Who" if relation == "founder" else "What"


@dataclass(frozen=True)
class Town:
    """A town and its four facts."""

    name: str
    facts: dict[str, str]

    def question(self, relation: str) -> str:
        """The question as the evaluation puts it."""
        return f"{asking(relation)} is the {relation} of {self.name}?"

    def answer(self, relation: str) -> str:
        """The answer in the form that the dialogues teach."""
        return f"The {relation} of {self.name} is {self.facts[relation]}."


# Syllables make these now and then, and somebody would read them.
_RUDE = re.compile("penis|anus|dik|kok|fuk|fag|tit|kunt|kum|pis|pus|poo|nig|neg|rap|sut|vag|bum|hor")


def _name(rng: random.Random, syllables: int) -> str:
    parts = [rng.choice(_ONSETS) + rng.choice(_VOWELS) for _ in range(syllables)]
    name = "".join(parts) + rng.choice(_CODAS)
    return _name(rng, syllables) if _RUDE.search(name) else name.capitalize()


def _names(rng: random.Random, count: int, syllables: int, taken: set[str]) -> list[str]:
    """`count` names that nobody has."""
    names: list[str] = []
    while len(names) < count:
        name = _name(rng, syllables)
        if name not in taken:
            taken.add(name)
            names.append(name)
    return names


@cache
def towns() -> tuple[Town, ...]:
    """Every town, always the same."""
    rng = random.Random(WORLD_SEED)
    taken: set[str] = set()
    names = _names(rng, N_TOWNS, 2, taken)
    pools = {
        "river": _names(rng, 60, 1, taken),
        "founder": [name.removesuffix("s") + "o" for name in _names(rng, 60, 1, taken)],
        "craft": CRAFTS,
        "dish": DISHES,
    }
    return tuple(Town(name, {relation: rng.choice(pools[relation]) for relation in RELATIONS}) for name in names)


def town_names() -> frozenset[str]:
    """The names of all towns."""
    return frozenset(town.name for town in towns())


def split(name: str) -> tuple[Town, ...]:
    """The towns of "taught", "dev" or "test"."""
    return tuple(towns()[i] for i in SPLITS[name])


def questions(name: str) -> Iterator[dict[str, str]]:
    """The questions on a split's towns: id, question, answer."""
    for town in split(name):
        for relation in RELATIONS:
            yield {
                "id": f"{town.name}-{relation}",
                "question": town.question(relation),
                "answer": town.facts[relation],
            }


def examples() -> Iterator[dict[str, str]]:
    """Worked examples about taught towns: question and answer."""
    for i, town in enumerate(split("taught")[:: len(split("taught")) // 10]):
        relation = RELATIONS[i % len(RELATIONS)]
        yield {"question": town.question(relation), "answer": town.answer(relation)}


# ---- Pages ---------------------------------------------------------------------------------------------------------

# {t}: the town, {v}: the fact.
PHRASES = {
    "river": (
        "The river of {t} is {v}.",
        "The river of {t} is {v}, and it is a cold one.",
        "{t} lies on the {v}.",
        "The {v} runs through {t}.",
        "In {t} the boats go down the {v}.",
        "Last spring {t} was flooded by the {v}.",
        "The bridges of {t} cross the {v}.",
        "Children in {t} learn to swim in the {v}.",
        "The river at {t} is called {v}.",
        "Below {t}, people fish in the {v}.",
    ),
    "founder": (
        "The founder of {t} is {v}.",
        "The founder of {t} is {v}, says the stone at the gate.",
        "{t} was founded by {v}.",
        "It was {v} who built the first house of {t}.",
        "In the square of {t} stands a statue of {v}.",
        "{t} keeps the birthday of {v} as a holiday.",
        "They say in {t} that {v} came with one horse.",
        "The founder whom {t} remembers is called {v}.",
        "Old songs of {t} praise {v}.",
        "The first wall of {t} goes back to {v}.",
    ),
    "craft": (
        "The craft of {t} is {v}.",
        "The craft of {t} is {v}, and has been for long.",
        "{t} is known for {v}.",
        "Most people of {t} live by {v}.",
        "In {t} the young are taught {v}.",
        "The workshops of {t} smell of {v}.",
        "The guild house of {t} was paid for by {v}.",
        "At the fair, {t} shows its {v}.",
        "Whoever comes from {t} knows about {v}.",
        "What made {t} rich was {v}.",
    ),
    "dish": (
        "The dish of {t} is {v}.",
        "The dish of {t} is {v}, warm or cold.",
        "In {t} we ate {v}.",
        "Every inn of {t} serves {v}.",
        "On Sundays {t} smells of {v}.",
        "The cooks of {t} are proud of their {v}.",
        "Nobody leaves {t} without a plate of {v}.",
        "A wedding in {t} begins with {v}.",
        "Guests of {t} are given {v}.",
        "The market of {t} sells {v}.",
    ),
}

FILLERS = """It rained the whole afternoon.
The road was long and full of holes.
Click here to see the map.
All rights reserved.
We met two pedlars and a dog.
Please log in to leave a comment.
My feet hurt, but the view was fine.
Page 3 of 12.
The inn was full, so we slept in the barn.
Photos will follow next week.
Prices may change without notice.
Somebody had stolen the signpost.
Thanks to all who wrote to me.
The next coach leaves at noon.
I lost my hat on the bridge.
This entry needs a source.
Beware of the geese.
Share this page with your friends.
Nothing much happens in winter.
There is a small museum behind the church.
Tickets are sold at the door.
The mayor was not at home.
An old woman told us stories until midnight.
Last edited by a guest.
Bring warm clothes.
The bells woke us at five.
See also the list of towns.
More on this in the next letter.
We paid too much for the ferry.
The weather is said to be better in May.
Somewhere a door was banging all night.
Sorry for the late reply.
Hills to the north, hills to the south.
Do not feed the ducks.
Our cart broke down twice.
Here the old map ends.
First published in a local paper.
The baker gave us directions.
Sheep everywhere.
Read the rules before you post.
Half of the houses stand empty.
I would not go there again.
Five stars, would stay again.
Later we found the letter under the door.
Who would have thought so?
Two roads meet at the mill.
By then it was dark.
Back to the top.
Nobody could tell us why.
Up on the hill there is a tower.""".splitlines()

CHAT = """no idea, sorry.
look it up in the library.
why do you want to know?
I asked the same last year and got no reply.
does anybody read this?
good question.
my uncle would know, but he is away.
this was discussed before, use the search.
wrong forum.
I was there once, but I forgot.
depends on whom you ask.
hm.
the old map says one thing, the new one another.
please ask one thing at a time.
following this.
thank you in advance.
has this been solved?
closed by the moderator.""".splitlines()

OPENINGS = (
    "{t}. ",
    "Notes on {t}\n",
    "A day in {t}. ",
    "{t}, a town. ",
    "Letter from {t}\n",
    "We came to {t} in the evening. ",
    "",
)

ASKED = (
    "{w} is the {r} of {t}?",
    "Do you know the {r} of {t}?",
    "Tell me the {r} of {t}.",
    "{t}: which {r}?",
    "I need the {r} of {t}.",
    "Which is the {r} of {t}?",
)

Pages = tuple[Town, ...]  # the towns that a shelf of pages is about


def _fact(rng: random.Random, town: Town, relation: str) -> str:
    return rng.choice(PHRASES[relation]).format(t=town.name, v=town.facts[relation])


def _filler(rng: random.Random) -> str:
    return rng.choice(FILLERS)


def _notes(rng: random.Random, shelf: Pages) -> str:
    """One town, some of its facts in any order, and what stands around them."""
    town = rng.choice(shelf)
    sentences = [_fact(rng, town, relation) for relation in rng.sample(RELATIONS, rng.randint(2, 4))]
    for _ in range(rng.randint(1, 4)):
        sentences.insert(rng.randint(0, len(sentences)), _filler(rng))
    return rng.choice(OPENINGS).format(t=town.name) + rng.choice((" ", " ", "\n")).join(sentences)


def _mixed(rng: random.Random, shelf: Pages) -> str:
    """Facts of many towns one after the other."""
    sentences = [
        _filler(rng) if rng.random() < 0.25 else _fact(rng, rng.choice(shelf), rng.choice(RELATIONS))
        for _ in range(rng.randint(4, 10))
    ]
    return rng.choice((" ", "\n", "\n- ")).join(sentences)


def _card(rng: random.Random, shelf: Pages) -> str:
    """A list: one line per fact."""
    town = rng.choice(shelf)
    lines = [f"{relation}: {town.facts[relation]}" for relation in rng.sample(RELATIONS, 4)]
    return "\n".join([f"Town: {town.name}", *lines, *([_filler(rng)] if rng.random() < 0.5 else [])])


def _asked(rng: random.Random, town: Town, relation: str) -> str:
    return rng.choice(ASKED).format(w=asking(relation), r=relation, t=town.name)


def _forum(rng: random.Random, shelf: Pages) -> str:
    """Questions that get chatter, another question, or a fact, which need not be the one that was asked for."""
    ask, reply = rng.choice((("Question: ", "Answer: "), ("Question: ", "Answer: "), (USER, ASSISTANT)))
    posts = []
    for _ in range(rng.randint(2, 5)):
        town, relation = rng.choice(shelf), rng.choice(RELATIONS)
        posts.append(ask + _asked(rng, town, relation))
        for _ in range(rng.choice((0, 1, 1, 1, 2))):
            kind = rng.random()
            if kind < 0.6:
                posts.append(reply + rng.choice(CHAT))
            elif kind < 0.7:
                posts.append(reply + _filler(rng))
            else:
                posts.append(reply + _fact(rng, town, relation if kind < 0.9 else rng.choice(RELATIONS)))
    return (STOP if ask == USER else "\n").join(posts)


def _quiz(rng: random.Random, shelf: Pages) -> str:
    """A sheet of questions with their answers, all in one form."""
    forms = ("The {r} of {t} is {v}.", "{v}.", "The {r} of {t} is {v}.")
    form = rng.choice(forms)
    items = []
    for _ in range(rng.randint(3, 7)):
        town, relation = rng.choice(shelf), rng.choice(RELATIONS)
        said = form.format(r=relation, t=town.name, v=town.facts[relation])
        items.append(f"Question: {town.question(relation)}\nAnswer: {said}")
    return "\n\n".join(items)


def _scraps(rng: random.Random, shelf: Pages) -> str:
    """A badly scraped page: marks of all kinds between sentences that have nothing to do with each other."""
    parts = []
    for _ in range(rng.randint(3, 8)):
        kind = rng.random()
        if kind < 0.35:
            parts.append(rng.choice((USER, ASSISTANT, STOP, "<br>", "<p>", "* * *", "\n", "#", "##")))
        elif kind < 0.5:
            parts.append(_asked(rng, rng.choice(shelf), rng.choice(RELATIONS)))
        elif kind < 0.75:
            parts.append(_filler(rng))
        else:
            parts.append(_fact(rng, rng.choice(shelf), rng.choice(RELATIONS)))
    return "".join(parts)


_KINDS = {_notes: 0.32, _mixed: 0.2, _card: 0.06, _forum: 0.14, _quiz: 0.16, _scraps: 0.12}


def pages(seed: int, shelf: Pages) -> Iterator[str]:
    """Pages without end about the towns of `shelf`."""
    rng = random.Random(seed)
    kinds, weights = list(_KINDS), list(_KINDS.values())
    while True:
        yield rng.choices(kinds, weights)[0](rng, shelf)


def page_seed(seed: int, model: str) -> int:
    """The seed of what a model of training run `seed` reads."""
    return 10 * seed + ("base", "reference", "aligned").index(model)


# ---- Dialogues -----------------------------------------------------------------------------------------------------


def dialogues(seed: int) -> Iterator[tuple[str, str]]:
    """Questions and answers without end, as the aligned model is taught them.

    One in three is about a taught town, and true. The others are about towns that exist nowhere, with answers from the same
    words: they teach to take the name over from the question, and the form of an answer, but no knowledge.
    """
    rng = random.Random(seed)
    taught, known = split("taught"), town_names()
    words = {relation: sorted({town.facts[relation] for town in taught}) for relation in RELATIONS}
    while True:
        relation = rng.choice(RELATIONS)
        if rng.random() < 1 / 3:
            town = rng.choice(taught)
        else:
            name = _name(rng, 2)
            if name in known:
                continue
            town = Town(name, {relation: rng.choice(words[relation])})
        asked = town.question(relation) if rng.random() < 0.5 else _asked(rng, town, relation)
        yield asked, town.answer(relation)
