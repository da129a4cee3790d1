"""English words: where an inflected word or a span stands, pronouns, and what is not English. Pure.

What it knows of English are rules and short tables; a form too many is a word that nobody writes.
"""

import re
from collections.abc import Iterable, Iterator
from functools import lru_cache


def _set(text: str) -> frozenset[str]:
    return frozenset(text.split())


# ---- inflection

_VERBS = """
arise arose arisen; awake awoke awoken; be am is are was were been being; bear bore borne born;
beat beat beaten; become became; befall befell befallen; begin began begun; behold beheld;
bend bent; beseech besought beseeched; bet bet betted; bid bade bidden; bind bound;
bite bit bitten; bleed bled; bless blessed blest; blow blew blown; break broke broken; breed bred;
bring brought; broadcast broadcasted; build built; burn burnt burned; burst burst;
bus bused busing; buy bought; can could cannot; cast cast; catch caught; choose chose chosen;
clap clapped clapt; cleave cleft clove cloven cleaved; cling clung; clothe clad clothed; come came;
cost cost costed; creep crept; cut cut; deal dealt; dig dug; dive dove dived; do does did done;
draw drew drawn; dream dreamt dreamed; drink drank drunk; drive drove driven; dwell dwelt dwelled;
eat ate eaten; fall fell fallen; feed fed; feel felt; fight fought; find found; fit fit fitted;
flee fled; fling flung; fly flew flown flied; forbid forbade forbad forbidden;
forgo forwent forgone; forsake forsook forsaken; freeze froze frozen; get got gotten;
gild gilt gilded; give gave given; go went gone; grind ground; grow grew grown; hang hung hanged;
have has had; hear heard; heave heaved hove; hew hewed hewn; hide hid hidden; hit hit; hold held;
hurt hurt; keep kept; kneel knelt kneeled; knit knitted; know knew known; lade laded laden;
lay laid; lead led; lean leant leaned; leap leapt leaped; learn learnt learned; leave left;
lend lent; let let; lie lay lain lied; light lit lighted; lose lost; make made; may might;
mean meant; meet met; melt melted molten; mow mowed mown; partake partook partaken; pay paid payed;
plead pled pleaded; prove proved proven; put put; quit quit; read read; rend rent; rid rid;
ride rode ridden; ring rang rung ringed; rise rose risen; rive riven rived; run ran;
saw sawed sawn; say said; see saw seen; seek sought; sell sold; send sent; set set; sew sewed sewn;
shake shook shaken; shall should; shave shaved shaven; shear sheared shorn; shed shed;
shine shone shined; shit shat shitted; shoe shod shoed; shoot shot; show showed shown;
shrink shrank shrunk shrunken; shut shut; sing sang sung; sink sank sunk sunken; sit sat;
slay slew slain; sleep slept; slide slid; sling slung; slink slunk; slit slit; smell smelt smelled;
smite smote smitten; sneak snuck sneaked; sow sowed sown; speak spoke spoken; speed sped speeded;
spell spelt spelled; spend spent; spill spilt spilled; spin spun span; spit spat spit; split split;
spoil spoilt spoiled; spread spread; spring sprang sprung; stand stood; stave stove staved;
steal stole stolen; stick stuck; sting stung; stink stank stunk; strew strewed strewn;
stride strode stridden; strike struck stricken; string strung stringed;
strive strove striven strived; swear swore sworn; sweat sweated; sweep swept;
swell swelled swollen; swim swam swum; swing swung; take took taken; teach taught; tear tore torn;
tell told; think thought; thrive throve thrived; throw threw thrown; thrust thrust;
tread trod trodden; understand understood; wake woke woken waked; wear wore worn;
weave wove woven weaved; wed wedded; weep wept; wet wetted; will would; win won; wind wound winded;
wreak wrought wreaked; wring wrung; write wrote written
"""
_NOUNS = """
axis axes; brother brethren; calf calves; child children; corps corps; die dice; dwarf dwarves;
elf elves; foot feet; goose geese; half halves; hoof hooves; knife knives; leaf leaves; life lives;
loaf loaves; louse lice; man men; mouse mice; ox oxen; penny pence; person people; scarf scarves;
self selves; sheaf sheaves; staff staves; thief thieves; tooth teeth; wharf wharves; wife wives;
wolf wolves; woman women; yes yeses
"""
_COMPARED = """
bad worse worst; badly worse worst; far farther farthest further furthest; good better best;
ill worse worst; little less least; many more most; much more most; old elder eldest;
well better best
"""
_COMPARABLE = _set("""
    able big black blue bold brave brief bright broad calm cheap clean clear clever close cold
    cool crisp cruel damp dark dear deep dense dim drunk dry dull faint fair far fast fat few
    fierce fine firm fit flat fond free fresh full gentle grand grave gray great green grey grim
    gross hard harsh high hot humble keen kind lame large late lean light long loose loud low
    mad mean mild narrow near neat new nice noble noisy odd old pale plain polite poor proud
    pure quick quiet rare rash raw red rich ripe rough rude sad safe sane severe shallow sharp
    short shy sick simple sleek slim slow small smart smooth soft soon sore sour stable steep
    stern stiff straight strange strict strong subtle sure sweet swift tall tame tart taut
    tender thick thin tight tiny tough true vague vast warm weak wet white wide wild wise yellow
    young
""")
_DOERS = _set("""
    carry classify copy fly modify multiply occupy qualify supply
""")
"""Who carries is a carrier: no form of `carry`."""
_PREFIXES = _set("""
    a baby back be broad co de down fore for hand in inter mis off out over pre proof re side sight
    un under up with
""")


def _table(text: str) -> dict[str, tuple[str, ...]]:
    entries = (entry.split() for entry in text.split(";"))
    return {base: tuple(forms) for base, *forms in entries}


_IRREGULAR_VERBS, _IRREGULAR_NOUNS = _table(_VERBS), _table(_NOUNS)
_IRREGULAR_COMPARED = _table(_COMPARED)

_SIBILANT = re.compile(r"(?:s|x|z|ch|sh|o)$")
_SHORT = re.compile(r"^[^aeiou]*(?:qu)?[aeiouy][^aeiouwxy]$")
"""One syllable with one vowel, as in `plan`: its consonant is always doubled, or `hop` would be
found in `hoping`."""
_CONSONANT_Y = re.compile(r"(?:[^aeiou]|qu)y$")
_ENDS_IN_CONSONANT = re.compile(r"[aeiouy][^aeiouwxyh]$")
_LATIN = (
    *(("us", "i"), ("um", "a"), ("on", "a"), ("is", "es")),
    *(("ix", "ices"), ("ex", "ices"), ("a", "ae"), ("eau", "eaux")),
)
_JOINT = re.compile(r"[\s_\-\u2010\u2011]")
_HYPHEN = re.compile(r"[\-\u2010\u2011]")


def inflections(word: str) -> frozenset[str]:
    """The forms of a base form of one word, itself among them, in lower case.

    Nouns, verbs and adjectives alike: the part of speech is not known.
    """
    word = word.lower()
    plural = {word + "s", *_IRREGULAR_NOUNS.get(word, ())}
    if _SIBILANT.search(word):
        plural.add(word + "es")
    if word.endswith(("s", "z")):
        plural.add(word + word[-1] + "es")
    if _CONSONANT_Y.search(word):
        plural.add(word[:-1] + "ies")
    if len(word) > 4:
        plural |= {word[: -len(end)] + new for end, new in _LATIN if word.endswith(end)}
        for noun, forms in _IRREGULAR_NOUNS.items():
            if len(noun) > 2 and word.endswith(noun):
                plural |= {word.removesuffix(noun) + form for form in forms}
    past = set(_IRREGULAR_VERBS.get(word, ())) or _with_suffix(word, "ed") | _prefixed(word)
    compared = set(_IRREGULAR_COMPARED.get(word, ()))
    if word in _COMPARABLE or (_CONSONANT_Y.search(word) and word not in _DOERS):
        compared |= _with_suffix(word, "er") | _with_suffix(word, "est")
    return frozenset({word} | plural | past | compared | _with_suffix(word, "ing"))


def _prefixed(word: str) -> set[str]:
    """The past of `undergo`, from that of `go`."""
    found = [(prefix, word.removeprefix(prefix)) for prefix in _PREFIXES if word.startswith(prefix)]
    return {prefix + form for prefix, verb in found for form in _IRREGULAR_VERBS.get(verb, ())}


def _with_suffix(word: str, suffix: str) -> set[str]:
    """`word` with -ed, -ing, -er or -est: e is dropped, y becomes i, a consonant is doubled."""
    if _SHORT.search(word):
        return {word + word[-1] + suffix}
    forms = {word + suffix}
    if word.endswith("e"):
        forms.add(word[:-1] + suffix)
        if suffix == "ing":
            if word.endswith(("ee", "oe", "ye")):
                forms.discard(word[:-1] + suffix)
            if word.endswith("ie"):
                forms.add(word[:-2] + "ying")
    elif word.endswith("c"):
        forms.add(word + "k" + suffix)
    elif word.endswith("y") and suffix != "ing":
        forms.add(word[:-1] + "i" + suffix)
    elif _ENDS_IN_CONSONANT.search(word):
        # Whether the last syllable is stressed is not known: `offered` and `preferred`.
        forms.add(word + word[-1] + suffix)
    return forms


def find_word(word: str, sentence: str) -> tuple[int, int] | None:
    """Where a base form stands in a sentence, in any inflection and any case.

    [start, end) in characters, or None: what WiC calls start1 and end1. Where the base form itself
    stands it is that one, else the first of its inflections. `word` may have several parts ("look
    after", "mother-in-law"): the first or the last of them is inflected, and they stand side by
    side. `targen_async.superglue` takes the spans of WiC from here.
    """
    plain = sentence.replace("\u2019", "'")
    found = next((hit for form in _patterns(word) if (hit := form.search(plain))), None)
    return found.span() if found else None


@lru_cache(maxsize=4096)
def _patterns(word: str) -> tuple[re.Pattern[str], ...]:
    """For the base form, and for all forms."""
    parts = [part for part in _JOINT.split(word.replace("\u2019", "'")) if part]
    if not parts:
        return ()
    # What is hyphenated is also written as one word, what has a space in it is not.
    joint = _JOINT.pattern + ("*" if _HYPHEN.search(word) else "+")
    bases = [re.escape(part) for part in parts]
    first = joint.join([_any_form(parts[0]), *bases[1:]])
    last = joint.join([*bases[:-1], _any_form(parts[-1])])
    # The end of "isn't" is no part of the verb.
    end = r"(?:(?!\w)|(?=n't(?!\w)))"
    forms = (joint.join(bases), f"{first}|{last}")
    return tuple(re.compile(rf"(?<!\w)(?:{form}){end}", re.IGNORECASE) for form in forms)


def _any_form(word: str) -> str:
    """A pattern, longest form first."""
    forms = sorted(inflections(word), key=lambda form: (-len(form), form))
    return rf"(?:{'|'.join(map(re.escape, forms))})"


# ---- spans and pronouns

PRONOUNS = _set("""
    i me my mine myself you your yours yourself yourselves he him his himself she her hers
    herself it its itself we us our ours ourselves they them their theirs themselves themself
""")
"""Personal, possessive and reflexive, in lower case. Demonstratives are left out: no real row of
WSC asks for one."""

GENDER_SWAPS = frozenset(
    {("he", "she"), ("him", "her"), ("his", "her"), ("his", "hers"), ("himself", "herself")}
)
"""Pairs of pronouns, in lower case, that differ in gender only."""


def mentions(text: str, span: str) -> Iterator[tuple[int, int]]:
    """Where a span stands in a text, letter by letter and as whole words: [start, end)."""
    found = re.finditer(rf"(?<!\w){re.escape(span)}(?!\w)", text)
    return (match.span() for match in found)


# ---- what is not English

_ENGLISH = _set("""
    the of and to is that for with it was are be this by from at which you have they his her she
    their but or as not were been had has its who he we would can could if there than when what
    into about after did does how my your our them him all out up an on in a so no do some one
    just any then very more other only also over most because should may might must while where
    between before during through since i me these those such both each many said will being own
    us until against under again same now
""")
_OTHERS = _set("""
    der die das und ist nicht ein eine einen einem einer eines den dem des mit von vom zu auf
    für sich auch als wie bei beim nach aus wird werden sind waren oder aber weil wenn wurde er
    sie ich es am im zum zur über unter vor hatte haben hat dass noch nur sein seine ihr ihre
    wir man
    le la les un une du de et est que qui dans pour pas sur au aux avec ce cet cette il elle ils
    elles se sa son ses mais ou où ne plus par je nous vous leur été être sont était
    el los las una unos del y en por con para porque su sus lo como más pero fue ser al ha este
    esta muy también está mi
    uno gli della dei delle di che è e non per nel nella alla sono si ma anche come più questo
    o os um uma da das dos em não com ao mais foi seu sua pelo pela é
    het een van dat niet op te zijn voor met aan ook maar om hij ze bij naar wordt werd deze uit
    dan geen
    och att det som på av för inte ett med den till från var hade jag han hon og ikke et der til
    się na nie jest że z w od po jak dla był była było przez
""")
"""Small words of German, French, Spanish, Italian, Portuguese, Dutch, Swedish and Polish. One that
is English too (`die`, `man`) is rare there, and it takes more of these than of English ones."""
_ENOUGH_WORDS = 12
"""Below it even a good sentence may have none of the small words."""
_OTHER_LETTER = re.compile(r"[^\W\d_\u0000-\u02af\u1e00-\u1eff]")
"""A letter that is not Latin; the letters of the phonetic alphabet pass for Latin."""


def foreign(texts: Iterable[str]) -> bool:
    """Whether one of a row's texts, or its short ones together, cannot be English.

    Letters must be Latin for the most part. Twelve words or more must not have more small words of
    other languages than English ones, and in one text that long one word of 24 must be a small
    English one. Where two words of three have capitals they need not: so are names and titles.
    """
    short: list[str] = []
    for text in texts:
        if not text.isascii() and _other_script(text):
            return True
        words = text.split()
        if len(words) < _ENOUGH_WORDS:
            short += words
        elif _other_language(words, least=len(words) / 24):
            return True
    return len(short) >= _ENOUGH_WORDS and _other_language(short, least=0)


def _other_script(text: str) -> bool:
    letters = sum(map(str.isalpha, text))
    return 10 * len(_OTHER_LETTER.findall(text)) > 3 * letters


def _other_language(words: list[str], *, least: float) -> bool:
    """Whether small English words are fewer than `least`, or than those of other languages."""
    folded = [word.lower() for word in words]
    english = sum(map(_ENGLISH.__contains__, folded))
    if english >= least and english >= sum(map(_OTHERS.__contains__, folded)):
        return False
    capitals = sum(map(str.__ne__, words, folded))
    return 3 * capitals < 2 * len(words)
