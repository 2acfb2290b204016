"""The words that the offline tasks are written with.

Names come in two banks, one for training and one for the held-out files, and no word stands in both: a score on
the held-out files therefore says that the model reads the sentence, not that it remembers the name. Ordinary words
(nouns, verbs, adjectives, reasons) are shared, because knowing them is what training is for.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

FIRST_NAMES = {
    "train": """Ada Albert Alice Amara Anders Anna Arthur Beatrice Bruno Carla Cecilia Chen Clara Conrad Daniel
        Diego Edith Elena Elias Emma Erik Fatima Felix Fiona Frances George Giulia Grace Greta Hana Harold Helen
        Henry Hugo Ines Isaac Ivan Jakob James Jane Johan Jonas Joseph Julia Karim Kenji Laura Leila Leon Lucia
        Magnus Marco Maria Martin Mary Maya Miguel Mina Nadia Nils Nora Olga Omar Oscar Paul Pedro Peter Petra Rafael
        Robert Rosa Ruth Samuel Sara Simon Sofia Stefan Thomas Tomas Vera Victor Walter William Yusuf Zara""".split(),
    "heldout": """Agnes Alma Axel Bertha Boris Camille Cyrus Dagmar Dario Edgar Esther Fabian Flora Gideon Gwen Hector
        Imani Irene Jasper Judith Klaus Lydia Malik Mathilda Nestor Odette Orson Priya Quentin Ramona Selma Tariq
        Ursula Viggo Wanda Xenia Yolanda Zoltan""".split(),
}
LAST_NAMES = {
    "train": """Abbott Adler Alvarez Andersen Arden Bauer Becker Bell Bergman Blake Bose Brandt Carver Castellan Cole
        Costa Crane Dahl Delgado Dixon Duarte Eriksen Farrow Fischer Fontaine Foster Garcia Gray Haddad Hale Hansen
        Harlow Hayashi Holm Hughes Ibsen Ito Jansen Jordan Kaplan Keller Khan Klein Kovac Lambert Larsen Lindgren
        Lopez Lund Marsh Martel Mason Mendez Meyer Moreau Moreno Morgan Nakamura Nielsen Novak Nunez Okafor Olsen Osman
        Palmer Park Pereira Petrov Quinn Rahman Reed Rossi Russo Santos Sato Schmidt Shah Silva Singh Sorel Stone
        Strand Tanaka Torres Turner Vance Vargas Vogel Wagner Walsh Weber Whitlock Winter Wolf Wright Young
        Zimmer""".split(),
    "heldout": """Achterberg Balfour Bixby Chaudhry Cromwell Dubrovsky Eastwick Falkner Gruber Halloran Hathersage
        Iverson Jablonski Kirchner Lombardi Mbeki Montrose Naughton Oyelaran Pemberton Quiroga Rasmussen Sandoval
        Tillotson Ueda Valdivia Wexford Xander Yamamura Zielinski""".split(),
}
CITIES = {
    "train": """Amsterdam Ankara Antwerp Athens Austin Avignon Basel Bergen Berlin Bilbao Bologna Boston Bremen Bristol
        Bruges Budapest Cairo Chicago Cologne Cork Delft Denver Dresden Dublin Florence Geneva Genoa Ghent Glasgow
        Granada Hamburg Hanover Helsinki Istanbul Kyoto Lagos Leeds Lima Lisbon London Lyon Madrid Malmo Milan Mumbai
        Munich Nairobi Naples Odessa Osaka Oslo Paris Porto Prague Quebec Riga Rome Rotterdam Salzburg Seattle Seville
        Sofiyivka Stockholm Tokyo Toledo Trieste Turin Utrecht Valencia Venice Vienna Warsaw York Zagreb
        Zurich""".split(),
    "heldout": """Aarhus Bratislava Cardiff Dakar Eindhoven Freiburg Gdansk Houston Innsbruck Jakarta Kampala Ljubljana
        Marrakesh Nantes Oaxaca Perugia Quito Reykjavik Sapporo Tallinn Uppsala Vilnius Winnipeg Xiamen Yerevan
        Zaragoza""".split(),
}
COUNTRIES = {
    "train": """Argentina Austria Belgium Brazil Canada Chile Denmark Egypt England Finland France Germany Greece
        Hungary India Ireland Italy Japan Kenya Mexico Morocco Norway Peru Poland Portugal Scotland Spain Sweden
        Switzerland Turkey Vietnam Wales""".split(),
    "heldout": "Armenia Bolivia Croatia Estonia Ghana Iceland Kazakhstan Latvia Malta Nepal Romania Senegal".split(),
}
# Invented names are built from these; the two sets give names that cannot be the same.
SYLLABLES = {
    "train": (
        "bar bel bor cal car dal dor el fal fen gal gor hal har ist kel kor lan lor mar mel mor nar nel or per ral"
        " ren ros sel sor tal tor val ver wes"
    ).split(),
    "heldout": "ash bex dov fen gil hob jas kim lev mon nix pol quen rud sim tov vik wyn yar zed".split(),
}
NAME_ENDINGS = {
    "train": "a ia o us en in ia ath ford ton ham stad berg by mouth dale field wick holm port".split(),
    "heldout": "ley more wood worth den gate sen ski".split(),
}
_CONSONANTS = [
    *"bcdfghjklmnpqrstvwxyz",
    "br",
    "ch",
    "cl",
    "dr",
    "fl",
    "gr",
    "kr",
    "ph",
    "sh",
    "st",
    "th",
    "tr",
    "sch",
    "mc",
]
_VOWELS = [*"aeiouy", "ai", "ea", "ee", "ie", "oo", "ou", "au", "ar", "en", "il", "on", "ur"]

AGENTS = """artist baker bishop botanist builder captain carpenter chemist clockmaker cook doctor driver engineer farmer
    fisherman gardener geologist glassmaker guard hunter inventor judge king librarian mason mayor mechanic merchant
    miller miner monk nurse painter physicist pilot poet potter prince printer programmer queen sailor scientist sculptor
    shepherd shoemaker smith soldier student surgeon surveyor tailor teacher technician trader traveller weaver
    writer astronomer mathematician biologist historian""".split()
OBJECTS = """anchor barn barrel basket bell blanket boat book bowl bridge building cable camera canal candle cannon carpet
    cart castle catalogue chair chapel chart chest chimney church clock cloth coat code coin compass copper crane cup dam
    desk dictionary dish door drum engine factory fence flag flute forge fountain furnace furniture garden gate gear
    glass globe hammer harbour helmet house instrument jar key kiln kite knife ladder lamp lantern lens letter lever lighthouse
    lock loom machine magnet manuscript map mask mast medal microscope mill mine mirror model motor mould net novel oven
    painting palace paper pendulum piano pipe plate plough poem pot pottery press processor program pump radio railway road
    roof rope sail saw scale school screw sculpture shelf shield ship shoe shop silk song spring statue steel stove
    sword table tank tapestry telescope temple tent theatre tile tool tower tunnel umbrella valve vase vessel violin
    wagon wall watch wheel windmill window wire workshop""".split()
ADJECTIVES = """ancient bent big blue bright broken bronze brown careful cheap clean cold complex curved dark deep dry early
    empty enormous expensive famous fast fine first flat foreign fragile free fresh giant golden great green grey heavy high hollow
    hot huge important iron large last late light little local long loud low main modern narrow new northern old open
    ordinary original painted plain precious private public quiet rare red rich rough round royal second sharp short
    silver simple slow small smooth soft solid southern square steep stone strange strong sweet tall thick thin third tiny
    unusual warm weak western wet white wide wild wooden yellow young""".split()
MATERIALS = """aluminium amber bamboo brass brick bronze cedar cement clay concrete copper cotton flint glass gold granite iron
    ivory lead leather limestone linen marble oak paper pine plaster porcelain rubber sand sandstone silicon silk silver
    slate steel straw tin walnut wax willow wood wool zinc""".split()
NATURE = """air animal ant atom bacteria bark beaver bee beetle bird blood bone brain butterfly cactus cave cell cliff cloud coal
    comet coral crab crystal current desert dolphin dust eagle earth earthquake egg electron energy feather fern fire fish
    flame flower fog forest fossil fox frog fruit fungus galaxy gas glacier grain grass gravity heart heat hill honey horse
    ice insect island lake lava leaf lichen lightning lion liver lizard lung magma mammal metal meteor mineral molecule
    moon moss moth mountain mouse mud muscle mushroom nerve ocean oil owl oxygen penguin plankton planet plant pollen
    rabbit rain reef reptile rice ridge river rock root salmon salt sea seaweed seed shadow shark sheep shell skin sky smoke
    snail snake snow soil sound spider squirrel star steam stem stream sugar sulphur sun sunlight swamp tide tree
    valley vapour virus volcano water wave weather whale wheat wind wing wolf worm yeast""".split()
ABSTRACT = """accuracy agreement answer attack battle beauty calculation cause century change colour cost culture custom danger
    data decision degree design difference direction discovery disease distance economy education effect error evening
    evidence example experiment explanation fashion festival force form frequency function future government growth
    history hour idea industry information instruction knowledge language law length life list loss market material measure
    memory message method minute mistake moment month morning motion movement music nature network night noise number
    object opinion order origin pattern peace period pleasure position power pressure price principle problem process
    product profit project property purpose quality quantity question rate reason record research result rhythm risk
    rule sample science season shape signal size skill society source space speed standard structure style success summer
    supply surface system task taste technique technology temperature test theory thought time tradition trade
    transport treatment type value version view voice war wealth week weight winter world year""".split()

# base, past, participle, -ing
VERBS = [
    tuple(line.split())
    for line in """
    abandon abandoned abandoned abandoning|admire admired admired admiring|attach attached attached attaching
    bring brought brought bringing|build built built building|burn burned burned burning|bury buried buried burying
    buy bought bought buying|carry carried carried carrying|carve carved carved carving|catch caught caught catching
    change changed changed changing|check checked checked checking|choose chose chosen choosing
    clean cleaned cleaned cleaning|collect collected collected collecting|copy copied copied copying
    cover covered covered covering|cut cut cut cutting|damage damaged damaged damaging
    decorate decorated decorated decorating|deliver delivered delivered delivering|describe described described describing
    design designed designed designing|destroy destroyed destroyed destroying|discover discovered discovered discovering
    donate donated donated donating|draw drew drawn drawing|dry dried dried drying|enlarge enlarged enlarged enlarging
    examine examined examined examining|exchange exchanged exchanged exchanging|exhibit exhibited exhibited exhibiting
    fill filled filled filling|find found found finding|finish finished finished finishing|fix fixed fixed fixing
    forge forged forged forging|give gave given giving|guard guarded guarded guarding|hang hung hung hanging
    heat heated heated heating|hide hid hidden hiding|improve improved improved improving
    inspect inspected inspected inspecting|install installed installed installing|invent invented invented inventing
    keep kept kept keeping|lift lifted lifted lifting|light lit lit lighting|load loaded loaded loading
    lose lost lost losing|make made made making|measure measured measured measuring|melt melted melted melting
    mend mended mended mending|move moved moved moving|open opened opened opening|order ordered ordered ordering
    pack packed packed packing|paint painted painted painting|photograph photographed photographed photographing
    polish polished polished polishing|prepare prepared prepared preparing|present presented presented presenting
    print printed printed printing|produce produced produced producing|protect protected protected protecting
    publish published published publishing|pull pulled pulled pulling|push pushed pushed pushing|raise raised raised raising
    record recorded recorded recording|remove removed removed removing|rent rented rented renting
    repair repaired repaired repairing|replace replaced replaced replacing|restore restored restored restoring
    return returned returned returning|save saved saved saving|sell sold sold selling|send sent sent sending
    shape shaped shaped shaping|show showed shown showing|sketch sketched sketched sketching|sink sank sunk sinking
    smooth smoothed smoothed smoothing|steal stole stolen stealing|store stored stored storing|study studied studied studying
    take took taken taking|test tested tested testing|throw threw thrown throwing|trade traded traded trading
    translate translated translated translating|transport transported transported transporting|tune tuned tuned tuning
    turn turned turned turning|use used used using|wash washed washed washing|weave wove woven weaving
    weigh weighed weighed weighing|write wrote written writing""".replace("\n", "|").split("|")
    if line.strip()
]
# base, third person, participle, -ing: what things do to one another in nature and in machines
PROCESSES = [
    tuple(line.split())
    for line in """
    absorb absorbs absorbed absorbing|attract attracts attracted attracting|block blocks blocked blocking
    break breaks broken breaking|bend bends bent bending|cause causes caused causing|compress compresses compressed compressing
    contain contains contained containing|control controls controlled controlling|convert converts converted converting
    cool cools cooled cooling|create creates created creating|dissolve dissolves dissolved dissolving
    drive drives driven driving|eat eats eaten eating|feed feeds fed feeding|filter filters filtered filtering
    form forms formed forming|hold holds held holding|increase increases increased increasing|lower lowers lowered lowering
    multiply multiplies multiplied multiplying|need needs needed needing|prevent prevents prevented preventing
    receive receives received receiving|reduce reduces reduced reducing|reflect reflects reflected reflecting
    release releases released releasing|scatter scatters scattered scattering|separate separates separated separating
    slow slows slowed slowing|spread spreads spread spreading|stop stops stopped stopping|support supports supported supporting
    surround surrounds surrounded surrounding|tighten tightens tightened tightening|trap traps trapped trapping
    warm warms warmed warming|wear wears worn wearing""".replace("\n", "|").split("|")
    if line.strip()
]

REASONS = """the old one had burned down|the roof leaked|the river had flooded|there was not enough money|the war had begun
    prices had fallen|winter was coming|nobody else wanted the work|the king demanded it|the wood had started to rot
    the ground was too soft|it was cheaper than stone|the first attempt had failed|the market had moved
    a storm was expected|the owner had died|demand had doubled|the road was blocked by snow|the metal cracked in the cold
    it does not rust|it floats on water|it holds heat well|salt draws out the water|the air is thinner there
    warm air rises|the light was better there|the smell drove customers away|the water was not safe to drink
    it was lighter and stronger|fewer workers were needed|the law had changed|the memory was too slow
    they had run out of fuel|the noise frightened the horses|the sea had retreated|no other harbour was deep enough
    the two sides could not agree|the paint contained lead|insects had eaten the beams|it reflects most of the light
    the signal was too weak|the doctors advised it|visitors kept getting lost|the tax on windows had risen""".split(
    "\n"
)
REASONS = [part.strip() for line in REASONS for part in line.split("|")]
PURPOSES = """keep the rain out|pay for the new school|protect the crops from frost|make the journey shorter|warn passing ships
    grind more flour|save fuel|attract more visitors|hide it from the army|stop the wall from falling|measure the depth
    let air reach the fire|feed the workers|carry water to the fields|prevent cracks|remember the victims
    hold back the tide|reduce the noise|store grain for the winter|win the competition|keep the temperature steady
    remove the salt|spread the load|celebrate the harvest|send messages faster|reach the upper floor
    make room for a railway|learn how it worked|cool the metal slowly|keep wolves away from the sheep""".split("\n")
PURPOSES = [part.strip() for line in PURPOSES for part in line.split("|")]
SPOTS = """in the cellar|under the stairs|behind the chapel|near the harbour|on the roof|beside the river|in the main square
    at the edge of the forest|inside the tower|on the north bank|in a small workshop|below the waterfall|next to the mill
    on a frozen lake|at the foot of the hill|in the castle kitchen|outside the town walls|across the valley|above the door
    between two hills|along the coast|in the king's library|on an island|at the royal palace|in the open air
    beneath the floor|around the market|in the deepest part of the ocean|in the upper atmosphere|at the bottom of the lake
    in dry soil|on the dark side of the moon|inside the leaf|along the nerve|near the equator""".split("\n")
SPOTS = [part.strip() for line in SPOTS for part in line.split("|")]
TIMES = """in the spring|every winter|after the flood|before the war|during the siege|at dawn|at midnight|in early autumn
    on the first day of May|in the nineteenth century|after the harvest|during the festival|on Monday morning
    in the last week of June|shortly before sunset|in the middle ages|at the end of the summer|during the long drought
    in the late seventeenth century|two years later|after his death|on market days|at high tide|in the 1850s|once a year
    during the Second World War|in ancient times|in the eighteenth century""".split("\n")
TIMES = [part.strip() for line in TIMES for part in line.split("|")]
UNITS = {
    "length": ["metres", "kilometres", "feet", "miles", "centimetres", "millimetres"],
    "weight": ["kilograms", "tonnes", "grams", "pounds"],
    "duration": ["days", "hours", "years", "minutes", "weeks", "months", "seconds"],
    "temperature": ["degrees", "degrees Celsius"],
    "money": ["pounds", "dollars", "francs", "crowns"],
    "speed": ["kilometres per hour", "miles per hour", "metres per second"],
}
SMALL_NUMBERS = [
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "fifteen",
    "twenty",
    "thirty",
    "forty",
    "fifty",
    "sixty",
    "a hundred",
    "a thousand",
]
MONTHS = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
]
ORG_ENDINGS = [
    "Institute",
    "Society",
    "Company",
    "Museum",
    "Foundation",
    "Bank",
    "Press",
    "Works",
    "Academy",
    "Laboratory",
    "Railway",
    "Group",
    "Council",
    "Brothers",
    "University",
    "Observatory",
    "Shipyard",
    "Theatre",
    "Hospital",
    "Club",
]


def is_heldout_number(number: int) -> bool:
    """Whether a number above 20 belongs to the held-out files (one in seven does)."""
    return number > 20 and number % 7 == 3


@dataclass(frozen=True)
class NameBank:
    """Draws names and numbers that belong to one split, ``"train"`` or ``"heldout"``.

    Parameters
    ----------
    split
        Which of the two disjoint banks to draw from.
    invented_share
        How often a surname or a place is made up from syllables instead of taken from the list, 0 to 1.
    """

    split: str
    invented_share: float = 0.35

    def invented(self, rng: Random) -> str:
        """A made-up name, such as "Kelmorath"; in training also any pronounceable string of letters."""
        if self.split == "train" and rng.random() < 0.6:
            while True:
                name = "".join(rng.choice(_CONSONANTS) + rng.choice(_VOWELS) for _ in range(rng.choice((1, 2, 2, 3))))
                name += rng.choice(("", "n", "r", "s", "th", "ll", "nd", "ck"))
                if not name.endswith(tuple(NAME_ENDINGS["heldout"])):
                    return name.capitalize()
        parts = SYLLABLES[self.split]
        stem = "".join(rng.choice(parts) for _ in range(rng.choice((1, 1, 2))))
        return (stem + rng.choice(NAME_ENDINGS[self.split])).capitalize()

    def first_name(self, rng: Random) -> str:
        """A given name; in training often an invented one, so that the listed ones are not learned by heart."""
        if self.split == "train" and rng.random() < self.invented_share:
            return self.invented(rng)
        return rng.choice(FIRST_NAMES[self.split])

    def last_name(self, rng: Random) -> str:
        """A family name."""
        if rng.random() < self.invented_share:
            return self.invented(rng)
        return rng.choice(LAST_NAMES[self.split])

    def person(self, rng: Random) -> str:
        """A full name."""
        return f"{self.first_name(rng)} {self.last_name(rng)}"

    def city(self, rng: Random) -> str:
        """A town, real or invented."""
        if rng.random() < self.invented_share:
            return self.invented(rng)
        return rng.choice(CITIES[self.split])

    def country(self, rng: Random) -> str:
        """A country, real or, in training, now and then invented."""
        if self.split == "train" and rng.random() < 0.5 * self.invented_share:
            return self.invented(rng)
        return rng.choice(COUNTRIES[self.split])

    def organisation(self, rng: Random) -> str:
        """A company, a society, a museum."""
        ending = rng.choice(ORG_ENDINGS)
        if ending in ("University", "Bank", "Museum", "Academy") and rng.random() < 0.4:
            return f"{ending} of {self.city(rng)}"
        stem = self.city(rng) if rng.random() < 0.4 else self.last_name(rng)
        return f"{stem} {ending}"

    def number(self, rng: Random, low: int, high: int) -> int:
        """A whole number of this split, from low to high inclusive."""
        wanted = self.split == "heldout"
        while True:
            number = rng.randint(low, high)
            if number <= 20 or is_heldout_number(number) == wanted:
                return number

    def year(self, rng: Random) -> str:
        """A year between 1400 and 2023."""
        return str(self.number(rng, 1400 if rng.random() < 0.2 else 1780, 2023))

    def amount(self, rng: Random) -> str:
        """A number as prose writes it: "42", "1,300", "3.5", "about 90", "twelve"."""
        pick = rng.random()
        if pick < 0.2:
            return rng.choice(SMALL_NUMBERS)
        if pick < 0.6:
            text = str(self.number(rng, 21, 999))
        elif pick < 0.8:
            text = f"{self.number(rng, 21, 99) * 1000 + self.number(rng, 21, 999):,}"
        elif pick < 0.9:
            text = f"{rng.randint(1, 20)}.{rng.randint(1, 9)}"
        else:
            text = f"{self.number(rng, 1, 99)} million"
        return text


def every_name(split: str) -> set[str]:
    """All listed names of one split, as single words."""
    return {name for bank in (FIRST_NAMES, LAST_NAMES, CITIES, COUNTRIES) for name in bank[split]}


# Everyday words of English that the vocabulary should hold whole.
COMMON = """a about above according across after again against ago all almost along already also although always among an and
    another any anything appear are around as ask at away back be became because become been before began begin behind being
    believe below beneath beside between beyond both bring but by call called came can cannot carry century certain cheaper
    close come common could day days deal did die died different do does done down during each early either else end enough even
    ever every everyone everything exactly except far faster feel few find first five follow for found four from full further
    get give go goes going gone good got great grow grown had half happen has have having he held help her here high him his how
    however hundred hundreds if in inside instead into invented is it its itself just keep kept kind kinds knew know known large
    last later lead least leave led left less let lie like line little live lived long longer look lost lot low made main make
    makes making man many may mean means meet men might million more most much must name named near nearly need never new next no
    nobody nor not nothing now number of off often old on once one ones only open or order other others our out outside over own
    part parts people perhaps person piece place point put quite rather reach reached read real really reason remain right run
    said same say second see seem seen seven several shall she should show shown side since six small so some someone something
    sometimes soon stand started still stood stop such sure take taken than that the their them themselves then there therefore
    these they thing things think this those though thought thousand thousands three through throughout thus to today together
    too took top toward towards try turn twice two under unlike until up upon us use used useful usually very was water way we
    well went were what whatever when where whether which while who whole whom whose why will with within without word work
    worked would write written wrote year years yet you your advantage apart archive area arms award besides blood bought brought built build cause classic
    coast cold colour command compare connect contain cost create current damp deep degree depend describe determine develop
    device devise discover distance distances drive east effect element elevation employ energy engine equal error expect
    explain explore famous fast figure flow follow force foreign forest fresh ground happen heat height home honour idea
    industry influence introduce invent join journey keep land language largest layer level machine mark master material
    measure metal method mile mix model mouth move native nearby normal north ocean offer operate owe owner paid pattern
    percent plan plant play pollution popular position possible power powered prevent price process produce project promote
    prove quick quickly rate raw recent relate related remember remove replace require reserve rise rock rule scale science
    season separate set shape sharp shift ship shore simple single situation size slow soil solve sort source south special
    speed spread square stage standard station steel store strong structure summit supply support surface system team
    technique tend term test theory thick threat tool total trade transport travel true tunnel type unit usual valley value
    vary village volume warm waste wave weight west wide width wind winter wire worth wrong yield""".split()
