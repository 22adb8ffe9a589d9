"""Which texts does `edgebert demo` learn from? Voice commands for a home and phone assistant, 14 intents.

The texts come from a small grammar and a seed, so nothing is downloaded. `easy` rows name their intent
directly ("turn on the kitchen lights"). `hard` rows, 40 % of every intent, hide it: they negate or repair
another command, mention another intent as a fact or a quotation, or only hint at what is wanted ("it is too
dark in the kitchen").

What training never sees: validation and test share one set of templates, and no template of it, be it a
sentence, a command inside a sentence, or a frame around one, is used in train. About a third of the slot
fillers (rooms, names, times, songs) occur in test only. The kinds of difficulty are the same in every
split.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Literal

from edgebert.data import Example

Difficulty = Literal["easy", "hard"]


@dataclass(frozen=True, kw_only=True)
class DemoData:
    """The three splits of the demo's data set; a difficulty tuple runs parallel to its split's examples."""

    train: list[Example]
    validation: list[Example]
    test: list[Example]
    labels: tuple[str, ...]
    train_difficulty: tuple[Difficulty, ...]
    validation_difficulty: tuple[Difficulty, ...]
    test_difficulty: tuple[Difficulty, ...]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One generated text, with all templates it was made of (the outermost one first)."""

    text: str
    label: str
    difficulty: Difficulty
    templates: tuple[str, ...]


def generate(seed: int = 0) -> DemoData:
    """Makes the data set: 3402 train, 602 validation and 1204 test examples, no text twice.

    Args:
        seed: The same seed gives the same data on every Python version.
    """
    rows = generate_rows(seed)
    return DemoData(
        train=_examples(rows["train"]),
        validation=_examples(rows["validation"]),
        test=_examples(rows["test"]),
        labels=tuple(sorted(TRAIN.intents)),
        train_difficulty=tuple(row.difficulty for row in rows["train"]),
        validation_difficulty=tuple(row.difficulty for row in rows["validation"]),
        test_difficulty=tuple(row.difficulty for row in rows["test"]),
    )


def generate_rows(seed: int = 0) -> dict[str, list[Row]]:
    """Makes the rows of `generate` by split name, with their difficulty and templates."""
    random = Random(seed)
    seen: set[str] = set()
    return {
        "train": _split(TRAIN, easy=146, hard=97, unseen=False, random=random, seen=seen),
        "validation": _split(HELD_OUT, easy=26, hard=17, unseen=False, random=random, seen=seen),
        "test": _split(HELD_OUT, easy=52, hard=34, unseen=True, random=random, seen=seen),
    }


def write(data: DemoData, folder: Path) -> None:
    """Writes train.tsv, validation.tsv and test.tsv: header `text<TAB>label`, UTF-8, LF, no quoting.

    Args:
        data: What `generate` returned.
        folder: Made when it does not exist; files of these names in it are replaced.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, examples in (("train", data.train), ("validation", data.validation), ("test", data.test)):
        lines = ["text\tlabel", *(f"{example.text}\t{example.label}" for example in examples)]
        unfinished = folder / f"{name}.tsv.tmp"
        unfinished.write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")
        unfinished.replace(folder / f"{name}.tsv")


@dataclass(frozen=True, kw_only=True)
class Intent:
    """The wordings of one intent. `{command}`-like slots are named in `Grammar`, the others in `SLOTS`.

    Attributes:
        commands: Easy imperatives, which also fill `{command}` and `{other}` in frames.
        direct: Other easy sentences.
        facts: Statements that touch the intent and ask for nothing; they fill `{fact}` of other intents.
        hard: Sentences that hint at the intent, negate its opposite, or quote another one.
    """

    commands: tuple[str, ...]
    direct: tuple[str, ...]
    facts: tuple[str, ...]
    hard: tuple[str, ...]

    def templates(self) -> tuple[str, ...]:
        """Returns every template of the intent."""
        return self.commands + self.direct + self.facts + self.hard


@dataclass(frozen=True, kw_only=True)
class Slot:
    """What can stand in a slot: `shared` in every split, `unseen` in test only."""

    shared: tuple[str, ...]
    unseen: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Grammar:
    """The templates of train, or of validation and test.

    Attributes:
        easy_frames: Sentences around `{command}`, a command of the label.
        hard_frames: Sentences that also hold `{other}` or `{fact}`: a command or fact of another intent.
        intents: Wordings by label.
    """

    easy_frames: tuple[str, ...]
    hard_frames: tuple[str, ...]
    intents: Mapping[str, Intent]

    def templates(self) -> tuple[str, ...]:
        """Returns every template of the grammar."""
        inner = (template for intent in self.intents.values() for template in intent.templates())
        return (*self.easy_frames, *self.hard_frames, *inner)


@dataclass(kw_only=True)
class _Expansion:
    """Fills one template; no filler is used twice in a text."""

    grammar: Grammar
    label: str
    unseen: bool
    random: Random
    templates: list[str] = field(default_factory=list)
    fillers: list[str] = field(default_factory=list)

    def fill(self, template: str) -> str:
        self.templates.append(template)
        return re.sub(r"\{(\w+)\}", lambda match: self._slot(match[1]), template)

    def _slot(self, name: str) -> str:
        if name == "command":
            return self.fill(self.random.choice(self.grammar.intents[self.label].commands))
        if name == "other":
            return self.fill(self.random.choice(self._other_intent().commands))
        if name == "fact":
            return self.fill(self.random.choice(self._other_intent().facts))
        slot = SLOTS[name]
        pool = slot.shared + slot.unseen if self.unseen else slot.shared
        filler = self.random.choice([filler for filler in pool if filler not in self.fillers])
        self.fillers.append(filler)
        return filler

    def _other_intent(self) -> Intent:
        # Half of the time the intent most easily confused with the label.
        others = [label for label in self.grammar.intents if label != self.label]
        return self.grammar.intents[self.random.choice([RIVALS[self.label], self.random.choice(others)])]


def _split(grammar: Grammar, *, easy: int, hard: int, unseen: bool, random: Random, seen: set[str]) -> list[Row]:
    rows: list[Row] = []
    counts: tuple[tuple[Difficulty, int], ...] = (("easy", easy), ("hard", hard))
    for label in grammar.intents:
        for difficulty, count in counts:
            target = len(rows) + count
            while len(rows) < target:
                row = _row(_Expansion(grammar=grammar, label=label, unseen=unseen, random=random), difficulty)
                if row.text.casefold() not in seen:
                    seen.add(row.text.casefold())
                    rows.append(row)
    random.shuffle(rows)
    return rows


def _row(expansion: _Expansion, difficulty: Difficulty) -> Row:
    grammar, random = expansion.grammar, expansion.random
    intent = grammar.intents[expansion.label]
    if difficulty == "easy":
        template = random.choice(intent.commands + intent.direct + grammar.easy_frames)
    else:
        template = random.choice(random.choice((intent.hard, grammar.hard_frames)))
    text = expansion.fill(template)
    return Row(text=text, label=expansion.label, difficulty=difficulty, templates=tuple(expansion.templates))


def _grammar(frames: Mapping[str, tuple[str, ...]], intents: str) -> Grammar:
    return Grammar(
        easy_frames=frames["easy_frames"],
        hard_frames=frames["hard_frames"],
        intents={label: Intent(**wordings) for label, wordings in _table(intents).items()},
    )


def _table(text: str) -> dict[str, dict[str, tuple[str, ...]]]:
    """Reads blocks of a name and `key: value | value` entries, which may run over several lines."""
    table = {}
    for block in text.strip().split("\n\n"):
        name, *entries = re.split(r"(\w+): ", block)
        values = (tuple(" ".join(entry.split()).split(" | ")) for entry in entries[1::2])
        table[name.strip()] = dict(zip(entries[::2], values, strict=True))
    return table


def _examples(rows: Iterable[Row]) -> list[Example]:
    return [Example(text=row.text, label=row.label) for row in rows]


_SLOTS = """
artist
    shared: Adele | Ray Charles | Miles Davis | Coldplay | Nina Simone | Johnny Cash | Queen | Björk
    unseen: Madonna | David Bowie | Ella Fitzgerald | Aretha Franklin

city
    shared: Berlin | Rome | Oslo | Madrid | Chicago | Vienna | Tokyo | Dublin | Cairo
    unseen: Paris | Boston | Lisbon | Sydney

contact
    shared: Anna | Paul | my mother | my boss | Maria | Tom | the plumber | Uncle Joe | Yuki | our landlord
    unseen: Emma | my brother | Doctor Hill | Ahmed | the neighbor

content
    shared: I am running late | dinner is ready | the meeting is over | I will be home soon | the car is fixed
    unseen: the party is tonight | the train has been delayed | I found the keys

day
    shared: tomorrow | on Monday | on Tuesday | on Friday | on Saturday | next Sunday
    unseen: on Wednesday | next Thursday | the day after tomorrow

degrees
    shared: 17 degrees | 18 degrees | 19 degrees | 20 degrees | 22 degrees | 23 degrees | 24 degrees
    unseen: 16 degrees | 21 degrees | 25 degrees

door
    shared: front door | back door | garage door | cellar door | balcony door | side door | kitchen door
    unseen: garden gate | patio door | main entrance

errand
    shared: call the bank | fix the kitchen light | buy a new alarm clock | write to the tax office
    unseen: oil the front door | copy the party music | repair the heating

genre
    shared: jazz | rock | classical music | country music | hip hop | folk | techno | reggae
    unseen: blues | opera | soul music | heavy metal

item
    shared: milk | eggs | bread | batteries | light bulbs | coffee | candles | umbrellas | phone cards | rice
    unseen: butter | door handles | guitar strings | apples | sunscreen

list
    shared: shopping | grocery | party | camping | hardware store
    unseen: picnic | weekend

room
    shared: kitchen | bedroom | living room | bathroom | hallway | garage | office | cellar | dining room
    unseen: nursery | attic | guest room | studio

song
    shared: Leave the Lights On | Unlock My Heart | Rain in the Morning | Stop the Clock | Call Me Tomorrow
    unseen: Message to Nobody | Wake Me at Dawn | Lock and Key

time
    shared: 6 am | 6:30 | 7 am | 7:15 | 8 am | 8:45 | 9:30 | 5:40 | 10 am | 2 pm
    unseen: 5 am | 7:50 | 10:15 | noon
"""
SLOTS = {name: Slot(**fillers) for name, fillers in _table(_SLOTS).items()}

_CONFUSABLE = (
    ("add_to_list", "remove_from_list"),
    ("call_contact", "send_message"),
    ("cancel_alarm", "set_alarm"),
    ("lights_off", "lights_on"),
    ("lock_door", "unlock_door"),
    ("play_music", "stop_music"),
    ("set_temperature", "weather"),
)
# The intent most easily confused with each.
RIVALS = {**dict(_CONFUSABLE), **{second: first for first, second in _CONFUSABLE}}

_FRAMES = """
train
    easy_frames: please {command} | {command} please | can you {command} | I want you to {command}
    hard_frames: don't {other}, {command} instead | don't {other}, just {command} |
        {command}, but don't {other} | I don't want you to {other}, I want you to {command} |
        {other}, no wait, {command} | {other}, sorry, I meant to say {command} |
        you don't have to {other}, just {command} | please {command} and do not {other} |
        rather than {other}, {command} | you should {command}, not {other} |
        {contact} wanted you to {other}, but I would like you to {command} |
        now that {fact}, {command} | {fact}, so could you {command} | {command}, although {fact} |
        I know that {fact}, but please {command}

held_out
    easy_frames: could you {command} | hey, {command} | {command}, thanks | I need you to {command}
    hard_frames: do not {other}, but {command} | please don't {other}, {command} |
        whatever you do, don't {other}, I need you to {command} | {command}, please, and don't {other} |
        {other}, no, scratch that, {command} | {other}, oh no, I mean {command} |
        I asked you to {other}, but that was wrong, {command} |
        there is no need to {other}, but do {command} | {command} rather than {other} |
        you were supposed to {command}, not to {other} | {fact}, by the way, and now {command} |
        since {fact}, I'd like you to {command} | {command}, even if {fact}
"""

_TRAIN_INTENTS = """
add_to_list
    commands: add {item} to the {list} list | put {item} on the {list} list | write {item} on my {list} list |
        include {item} in the {list} list
    direct: {item} for the {list} list | new entry for the {list} list, {item}
    facts: I have put {item} on the {list} list | the {list} list has {item} on it
    hard: we have run out of {item}, and the {list} list doesn't say so |
        the {list} list should not be without {item} | don't let me forget to buy {item} |
        put the task to {errand} on my to-do list |
        I removed {item} from the {list} list by mistake, I want that entry back |
        we need {item}, but I don't see any on the {list} list

call_contact
    commands: call {contact} | phone {contact} | give {contact} a call | dial the number of {contact} |
        call {contact} about the {list} list
    direct: I want to talk to {contact} on the phone | phone call to {contact}
    facts: {contact} has just called | I have spoken to {contact} on the phone
    hard: I need to hear the voice of {contact} | a message won't do, I have to speak to {contact} right now |
        {contact} never reads my texts, so I would rather talk |
        put me through to {contact}, it is about the {list} list |
        I want to tell {contact} myself that {fact}, so get me a line

cancel_alarm
    commands: cancel the alarm at {time} | turn off my alarm for {time} | delete the {time} alarm |
        remove the alarm set for {time} {day}
    direct: no alarm at {time} {day} | I don't need the {time} alarm
    facts: I have cancelled the alarm for {time} | the {time} alarm is gone
    hard: I want to sleep in {day}, so there is no need to wake me at {time} |
        I set an alarm for {time}, but I am up already | don't wake me up at {time} {day} |
        the alarm I set for {time} was a mistake |
        my appointment {day} is off, so nothing has to ring at {time}

lights_off
    commands: turn off the {room} lights | switch the {room} lights off | put the lights out in the {room} |
        turn the lamp in the {room} off | make it dark in the {room}
    direct: {room} lights off | lights out in the {room} | I want the {room} lights off
    facts: the {room} lights are already off | I have just switched off the lamp in the {room}
    hard: it is too bright in the {room} | I can't sleep with the lights on in the {room} |
        nobody is in the {room}, so the lights should not be on |
        the {room} lamp is shining right into my eyes | I don't need any light in the {room} anymore |
        I turned the lights on in the {room}, but I want it dark again

lights_on
    commands: turn on the {room} lights | switch the {room} lights on | put the lights on in the {room} |
        turn the lamp in the {room} on | make it bright in the {room}
    direct: {room} lights on | lights on in the {room} | I want the {room} lights on
    facts: the {room} lights are already on | I have just switched on the lamp in the {room}
    hard: it is too dark in the {room} | I can't read my book in the {room} with the lights off |
        I am in the {room}, so the lights should not be off | I can't see a thing in the {room} |
        I don't want to sit in the dark in the {room} |
        I turned the lights off in the {room}, but now I can't find my keys in there

lock_door
    commands: lock the {door} | close and lock the {door} | lock up the {door} | put the lock on the {door}
    direct: I want the {door} locked | {door}, lock
    facts: I have locked the {door} | the {door} is already locked
    hard: I don't want anyone to come in through the {door} | the {door} should not be unlocked at night |
        we are leaving, so nobody should be able to open the {door} |
        {contact} left the {door} unlocked, and I don't like that |
        {artist} may keep playing in the {room}, but I want no visitors at the {door}

play_music
    commands: play {genre} in the {room} | play {artist} | put on {genre} in the {room} |
        start playing {artist} in the {room}
    direct: I want to hear {artist} | I would like to listen to {genre}
    facts: {artist} is playing in the {room} | I have just put on {genre}
    hard: it is too quiet in the {room}, I am in the mood for {genre} |
        don't stop now, I want one more song by {artist} |
        the party in the {room} could do with some {genre} |
        I want to hear the song called {song} in the {room} | how about {song} by {artist} |
        the {genre} stopped, and I was still listening to it

remove_from_list
    commands: remove {item} from the {list} list | take {item} off the {list} list |
        delete {item} from my {list} list | cross {item} off the {list} list |
        strike {item} off the {list} list
    direct: no {item} on the {list} list | I don't need {item} on the {list} list
    facts: I have taken {item} off the {list} list | I see no {item} on the {list} list anymore
    hard: I have already bought {item}, so the {list} list is out of date |
        {contact} is bringing {item}, so we don't need any on the {list} list |
        I put {item} on the {list} list by mistake |
        we have more than enough {item}, so don't let me buy any |
        take the task to {errand} off my to-do list | I added {item} to the {list} list, but I don't want any

send_message
    commands: send {contact} a message | text {contact} | write a message to {contact} |
        tell {contact} that {content}
    direct: message to {contact} | text message for {contact}, {content}
    facts: I have sent {contact} a message | {contact} got my text
    hard: text {contact} that {fact} | tell {contact} to {other} | let {contact} know that {fact} |
        send {contact} a note with the request to {other} |
        I don't want to call {contact}, just pass on that {content} |
        I can't talk on the phone now, but {contact} has to know that {content}

set_alarm
    commands: set an alarm for {time} | wake me up at {time} | set my alarm for {time} {day} |
        get me out of bed at {time}
    direct: alarm for {time} {day} | I need an alarm at {time}
    facts: my alarm is set for {time} | there is an alarm at {time} {day}
    hard: I must not oversleep {day}, I have to be up at {time} |
        I have to call {contact} at {time} {day}, so don't let me sleep any longer than that |
        I have to be out of bed by {time} {day} | I cancelled the {time} alarm, but I need it after all |
        don't cancel anything, just make sure that I am awake at {time}

set_temperature
    commands: set the temperature in the {room} to {degrees} | turn the heating up to {degrees} |
        turn the heating down to {degrees} | make it {degrees} in the {room}
    direct: heating to {degrees} | I want it {degrees} in the {room}
    facts: it is {degrees} in the {room} already | the heating is set to {degrees}
    hard: I am freezing in the {room} | it is much too hot in the {room}, {degrees} would be nice |
        I don't care how cold it is in {city}, I want {degrees} in here |
        it may be raining, but the {room} should be at {degrees} | my feet are cold in the {room}

stop_music
    commands: stop the music in the {room} | turn off the music in the {room} | stop playing {artist} |
        pause the {genre} in the {room}
    direct: music off in the {room} | no more {genre} in the {room} | that is enough of {artist}
    facts: the music in the {room} has stopped | I have turned off the {genre} in the {room}
    hard: I can't concentrate with {artist} playing in the {room} | I don't want to hear any more {genre} |
        the baby is asleep, so {artist} should not be playing in the {room} |
        the {genre} in the {room} is giving me a headache | I have heard enough of the song called {song} |
        I put on {artist} in the {room}, but I want to hear nothing now

unlock_door
    commands: unlock the {door} | open the lock on the {door} | unlock the {door} for {contact} |
        undo the lock on the {door}
    direct: I want the {door} unlocked | {door}, unlock
    facts: I have unlocked the {door} | the {door} is already unlocked
    hard: I am standing outside the {door} without a key | {contact} is at the {door} and can't get in |
        let {contact} in through the {door} | the {door} should not be locked when {contact} arrives |
        somebody locked the {door}, and I am still outside

weather
    commands: tell me the weather in {city} {day} | check the forecast for {city} |
        find out whether it will rain in {city} {day} | give me the forecast for {city} {day}
    direct: what is the weather like in {city} {day} | will it rain in {city} {day}
    facts: the forecast for {city} is good | it is raining in {city}
    hard: do I need an umbrella in {city} {day} |
        it is {degrees} in the {room}, but how cold will it get in {city} {day} |
        I just got an alarm about a storm, is it going to reach {city} |
        should I wear a coat in {city} {day} | can we have a barbecue in {city} {day} without getting wet
"""

_HELD_OUT_INTENTS = """
add_to_list
    commands: add {item} to my {list} list | put {item} down on the {list} list |
        note {item} on the {list} list | save {item} to my {list} list
    direct: I need {item} on the {list} list | {list} list, add {item}
    facts: my {list} list already has {item} on it | {contact} added {item} to the {list} list
    hard: the {list} list is missing {item} | I see no {item} on the {list} list, and that is wrong |
        the task to {errand} belongs on my to-do list |
        I used up all the {item}, so I have to remember to get some more

call_contact
    commands: make a phone call to {contact} | ring {contact} | get {contact} on the phone |
        start a call with {contact}
    direct: I would like to phone {contact} | I have to make a call to {contact}
    facts: {contact} called at {time} | my call with {contact} is over
    hard: let me speak with {contact} about the {time} alarm |
        instead of writing to {contact} I would rather talk |
        {contact} sent me a text, but I don't want to type an answer, I want to talk |
        see if {contact} picks up the phone, I want to say that {content}

cancel_alarm
    commands: cancel my {time} alarm | delete the alarm for {time} {day} | switch off the alarm at {time} |
        clear the alarm set for {time}
    direct: I no longer need an alarm at {time} | {time} alarm off
    facts: the alarm for {time} has been deleted | there is no {time} alarm anymore
    hard: I would rather not be woken at {time} {day} |
        I asked you to wake me at {time} {day}, but let me sleep |
        I have the day off, so the alarm at {time} must not ring |
        I don't have to get up at {time} {day} anymore

lights_off
    commands: turn the {room} lights off | switch off the light in the {room} |
        turn off the lamp in the {room} | make the {room} dark
    direct: I want no light in the {room} | {room} lamp off
    facts: the light in the {room} is off already | somebody has turned the {room} lamp off
    hard: the {room} is far too bright for a nap | there is no reason for the light to be on in the {room} |
        don't leave the lamp on in the {room} | I am done reading in the {room} and don't need the lamp

lights_on
    commands: turn the {room} lights on | switch on the light in the {room} | turn on the lamp in the {room} |
        make the {room} bright
    direct: I want some light in the {room} | {room} lamp on
    facts: the light in the {room} is on already | somebody has turned the {room} lamp on
    hard: the {room} is far too dark for reading | there is no reason for the light to be off in the {room} |
        don't leave me without light in the {room} |
        somebody turned the lamp off, and nobody can see anything in the {room}

lock_door
    commands: get the {door} locked | lock the {door} behind me | bolt the {door} | shut and lock the {door}
    direct: the {door} has to be locked | I need a locked {door}
    facts: the {door} was locked at {time} | somebody has locked the {door}
    hard: no one should get in by the {door} | we are going to bed, and the {door} is still unlocked |
        don't leave the {door} unlocked | I unlocked the {door} for {contact}, but now it has to be safe again

play_music
    commands: play a song by {artist} | start some {genre} in the {room} | put {artist} on in the {room} |
        play me {genre}
    direct: I feel like listening to {artist} | music by {artist} in the {room}
    facts: the speaker in the {room} is playing {genre} | a song by {artist} is on
    hard: a little {genre} would cheer me up | the {room} is silent, and I would love some {artist} |
        I love {song}, can I hear it in the {room} | cooking in the {room} is boring without {genre}

remove_from_list
    commands: remove {item} from my {list} list | strike {item} from the {list} list |
        take {item} off my {list} list | erase {item} from the {list} list
    direct: I want {item} off the {list} list | {list} list, remove {item}
    facts: the {list} list no longer has {item} on it | {contact} deleted {item} from the {list} list
    hard: who added {item} to the {list} list, nobody wants any | {item} should not be on the {list} list |
        the task to {errand} is done and should no longer be on my to-do list |
        we still have plenty of {item}, so the {list} list can do without

send_message
    commands: message {contact} that {content} | send a text message to {contact} |
        write to {contact} that {content} | drop {contact} a text
    direct: new text for {contact}, {content} | I want to text {contact}
    facts: my message to {contact} is sent | {contact} has read my text
    hard: write to {contact} that {fact} | message {contact} that they should {other} |
        {contact} should get a text saying that {fact} |
        {contact} can't take a call right now, so write that {content} | ask {contact} in a text to {other}

set_alarm
    commands: set the alarm clock to {time} {day} | make an alarm for {time} | wake me at {time} {day} |
        add an alarm at {time} {day}
    direct: I want to be woken at {time} {day} | new alarm for {time}
    facts: the alarm will go off at {time} | I have an alarm for {time} {day}
    hard: don't let me sleep past {time} {day} |
        I should get up at {time} {day} to call {contact}, but I won't wake up on my own |
        my flight is early {day}, so I can't still be asleep at {time} |
        I deleted the alarm for {time}, but it has to ring {day}

set_temperature
    commands: set the {room} to {degrees} | change the thermostat in the {room} to {degrees} |
        turn the thermostat to {degrees} | heat the {room} to {degrees}
    direct: thermostat at {degrees} | the {room} should be {degrees}
    facts: the thermostat shows {degrees} | the {room} has warmed up to {degrees}
    hard: I'm shivering, the {room} needs {degrees} |
        we are sweating in the {room}, anything above {degrees} is too much |
        never mind the rain in {city}, I want it cozy in the {room}, at {degrees} or so |
        it is snowing in {city}, and the {room} is not warm enough for me

stop_music
    commands: pause the music in the {room} | turn the music off in the {room} | stop the {genre} |
        stop the song by {artist}
    direct: I want the music off in the {room} | stop, no more {artist}
    facts: the {genre} in the {room} is off | {artist} is no longer playing in the {room}
    hard: I want silence in the {room} instead of {genre} |
        {artist} should not play any longer in the {room} | I can't stand {song} any longer |
        we want to talk in the {room} without {genre} in the background

unlock_door
    commands: get the {door} unlocked | release the lock on the {door} | open the {door} for {contact} |
        unlock the {door} so that I can come in
    direct: the {door} has to be unlocked | I need an unlocked {door}
    facts: the {door} was unlocked at {time} | somebody has unlocked the {door}
    hard: I lost my key and have to get in through the {door} |
        don't keep {contact} waiting outside the {door} |
        don't leave the {door} locked, {contact} wants to come in |
        I locked the {door}, but {contact} is still outside in the rain

weather
    commands: look up the weather for {city} {day} | tell me if it will snow in {city} {day} |
        show me the forecast for {city} | check how warm it will be in {city} {day}
    direct: is it going to rain in {city} {day} | how is the weather in {city} {day}
    facts: it is sunny in {city} | snow is expected in {city} {day}
    hard: will I get wet in {city} {day} | are shorts a good idea in {city} {day} |
        the heating is at {degrees} here, but will I freeze outside in {city} {day} |
        I called {contact} in {city} and forgot to ask if it is snowing there, is it
"""

TRAIN = _grammar(_table(_FRAMES)["train"], _TRAIN_INTENTS)
HELD_OUT = _grammar(_table(_FRAMES)["held_out"], _HELD_OUT_INTENTS)
