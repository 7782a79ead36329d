"""The closed vocabulary of the demo: every word that a demo task or a pretraining family can say."""

ANIMALS = "ant bear bird cat cow crab dog duck eagle fox frog goat hare horse lamb lion mole mouse owl pig seal sheep snake swan tiger wolf zebra".split()
FRUITS = "apple banana cherry date fig grape kiwi lemon lime mango melon olive orange peach pear plum".split()
THINGS = "arrow basket bell book bottle box candle chair clock coat cup drum fork glove hammer hat key kite knife ladder lamp map needle pen plate ribbon rope saddle shoe spoon table umbrella vase wheel".split()
PLACES = "attic barn beach bridge cave city desert farm field forest garden harbor hotel island kitchen lake market mill park river road school tower valley village yard".split()
NOUNS = ANIMALS + FRUITS + THINGS + PLACES
CATEGORIES = {"animals": ANIMALS, "fruits": FRUITS, "things": THINGS, "places": PLACES}

NAMES = "anna ben carla david emma felix greta hugo irene jonas karin leo maria nina oscar paula robert sara tom vera".split()
COLOURS = "black blue brown golden green grey pink purple red silver white yellow".split()
ADVERBS = "again alone early here later now often soon there today".split()

# present (third person), past, base; irregular first: the stemmer of ROUGE-L cannot tell `walks` from `walked`
VERBS = [
    tuple(line.split())
    for line in """
    begins began begin
    breaks broke break
    brings brought bring
    builds built build
    buys bought buy
    catches caught catch
    chooses chose choose
    comes came come
    draws drew draw
    drinks drank drink
    drives drove drive
    eats ate eat
    falls fell fall
    feels felt feel
    fights fought fight
    finds found find
    flies flew fly
    gives gave give
    goes went go
    grows grew grow
    hears heard hear
    hides hid hide
    holds held hold
    keeps kept keep
    knows knew know
    leaves left leave
    loses lost lose
    makes made make
    meets met meet
    reads read read
    rides rode ride
    rings rang ring
    runs ran run
    sees saw see
    sells sold sell
    sends sent send
    sings sang sing
    sits sat sit
    sleeps slept sleep
    speaks spoke speak
    stands stood stand
    steals stole steal
    swims swam swim
    takes took take
    teaches taught teach
    tells told tell
    thinks thought think
    throws threw throw
    wakes woke wake
    wears wore wear
    wins won win
    writes wrote write
    walks walked walk
    talks talked talk
    jumps jumped jump
    cooks cooked cook
    paints painted paint
    laughs laughed laugh
    waits waited wait
    works worked work
    """.strip().splitlines()
]

ADJECTIVES = [
    tuple(line.split())
    for line in """
    bad worse worst
    big bigger biggest
    bright brighter brightest
    clean cleaner cleanest
    cold colder coldest
    dark darker darkest
    fast faster fastest
    good better best
    happy happier happiest
    long longer longest
    loud louder loudest
    old older oldest
    short shorter shortest
    slow slower slowest
    small smaller smallest
    strong stronger strongest
    tall taller tallest
    warm warmer warmest
    """.strip().splitlines()
]

NUMBERS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen twenty"
).split()

IRREGULAR_PLURALS = {"mouse": "mice", "sheep": "sheep", "wolf": "wolves", "knife": "knives"}


def plural(noun: str) -> str:
    """The plural of one of `NOUNS`."""
    if noun in IRREGULAR_PLURALS:
        return IRREGULAR_PLURALS[noun]
    if noun.endswith(("s", "x", "ch", "sh")):
        return noun + "es"
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return noun[:-1] + "ies"
    return noun + "s"


# words of the instructions themselves
FUNCTION_WORDS = (
    "q: a: a b c d e f g h i j k l m n o p q r s t u v w x y z the in and will to from of with at not is it on "
    "sort words word count each rewrite past tense put order list reverse: unique: add subtract number numbers "
    "repeat move first last end double twice plural more than future present swap pairs every second other keep "
    "only animals fruits things places which comes alphabet by one two three how many kinds sentence say back "
    "start front without missing all their this that one's what answer question as make give write find do for "
    "into larger smaller middle join lists both begin take drop after before same form place then are who where when but most plain"
).split()


def vocabulary() -> list[str]:
    """Every word, each once, in a fixed order."""
    words: dict[str, None] = {}
    for group in (FUNCTION_WORDS, NUMBERS, NOUNS, map(plural, NOUNS), NAMES, COLOURS, ADVERBS):
        words.update(dict.fromkeys(group))
    for forms in VERBS + ADJECTIVES:
        words.update(dict.fromkeys(forms))
    return list(words)
