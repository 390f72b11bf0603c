"""The small world that the embedded chat models know: countries, opposites, colours, animals, words, objects.

Plain tables, written for this library. Every noun belongs to one table only, so that "these splits share no entity"
has one meaning for all categories.
"""


def _pairs(text: str) -> dict[str, str]:
    """Parse ``key: value`` lines, or several of them on a line separated by semicolons."""
    items = (item.strip() for line in text.strip().splitlines() for item in line.split(";"))
    return {key.strip(): value.strip() for key, value in (item.split(":") for item in items if item)}


def _names(text: str) -> tuple[str, ...]:
    """Parse names separated by white space."""
    return tuple(text.split())


CAPITALS: dict[str, str] = _pairs("""
France: Paris; Germany: Berlin; Spain: Madrid; Italy: Rome; Portugal: Lisbon; Austria: Vienna; Belgium: Brussels
Poland: Warsaw; Hungary: Budapest; Greece: Athens; Norway: Oslo; Sweden: Stockholm; Finland: Helsinki
Denmark: Copenhagen; Iceland: Reykjavik; Ireland: Dublin; Romania: Bucharest; Bulgaria: Sofia; Croatia: Zagreb
Serbia: Belgrade; Slovenia: Ljubljana; Slovakia: Bratislava; Estonia: Tallinn; Latvia: Riga; Lithuania: Vilnius
Ukraine: Kyiv; Russia: Moscow; Turkey: Ankara; Egypt: Cairo; Morocco: Rabat; Algeria: Algiers; Libya: Tripoli
Kenya: Nairobi; Uganda: Kampala; Ghana: Accra; Nigeria: Abuja; Senegal: Dakar; Ethiopia: Addis Ababa
Rwanda: Kigali; Zambia: Lusaka; Zimbabwe: Harare; Angola: Luanda; Namibia: Windhoek; Botswana: Gaborone
Mali: Bamako; Sudan: Khartoum; Japan: Tokyo; China: Beijing; India: New Delhi; Nepal: Kathmandu
Thailand: Bangkok; Vietnam: Hanoi; Laos: Vientiane; Indonesia: Jakarta; Mongolia: Ulaanbaatar
Pakistan: Islamabad; Bangladesh: Dhaka; Iran: Tehran; Iraq: Baghdad; Syria: Damascus; Lebanon: Beirut
Jordan: Amman; Qatar: Doha; Oman: Muscat; Yemen: Sanaa; Georgia: Tbilisi; Armenia: Yerevan; Canada: Ottawa
Mexico: Mexico City; Cuba: Havana; Jamaica: Kingston; Haiti: Port-au-Prince; Panama: Panama City
Honduras: Tegucigalpa; Nicaragua: Managua; Brazil: Brasilia; Argentina: Buenos Aires; Chile: Santiago
Peru: Lima; Colombia: Bogota; Venezuela: Caracas; Ecuador: Quito; Uruguay: Montevideo; Paraguay: Asuncion
Australia: Canberra; New Zealand: Wellington; Fiji: Suva; Malta: Valletta; Cyprus: Nicosia; Albania: Tirana
""")

OPPOSITES: dict[str, str] = _pairs("""
hot: cold; big: small; tall: short; fast: slow; happy: sad; rich: poor; young: old; strong: weak; early: late
hard: soft; light: dark; loud: quiet; wet: dry; full: empty; clean: dirty; open: closed; near: far; high: low
thick: thin; wide: narrow; heavy: weightless; sharp: blunt; sweet: bitter; deep: shallow; rough: smooth
brave: afraid; true: false; right: wrong; good: bad; first: last; inside: outside; above: below; up: down
day: night; summer: winter; friend: enemy; war: peace; love: hate; life: death; begin: end; win: lose; buy: sell
give: take; push: pull; arrive: depart; laugh: cry; remember: forget; always: never; same: different
safe: dangerous; easy: difficult; asleep: awake
""")

COLOURS: dict[str, str] = _pairs("""
banana: yellow; lemon: yellow; sunflower: yellow; canary: yellow; cheese: yellow; corn cob: yellow
daffodil: yellow; tomato: red; cherry: red; strawberry: red; ruby: red; rose: red; raspberry: red; brick: red
poppy: red; cucumber: green; lettuce: green; emerald: green; pea: green; lime: green; leaf: green; cactus: green
avocado: green; blueberry: blue; sapphire: blue; clear sky: blue; cornflower: blue; ocean: blue
pair of jeans: blue; bluebell: blue; carrot: orange; pumpkin: orange; apricot: orange; tangerine: orange
basketball: orange; papaya: orange; coal: black; raisin: black; licorice stick: black; tyre: black; olive: black
blackberry: black; top hat: black; snowflake: white; egg: white; pearl: white; cotton ball: white
marshmallow: white; daisy: white; ghost: white; chestnut: brown; walnut: brown; acorn: brown; coconut: brown
chocolate bar: brown; biscuit: brown; tree trunk: brown; eggplant: purple; plum: purple; violet: purple
amethyst: purple; lavender bush: purple; grape: purple; flamingo: pink; peony: pink; orchid: pink
bubble gum: pink; salmon fillet: pink; pebble: grey; battleship: grey; nickel coin: grey; ash pile: grey
gravel path: grey
""")

# animal: sound (bare verb) | number of legs | where it lives
_ANIMALS: dict[str, str] = _pairs("""
dog: bark | four | in a house; cat: meow | four | in a house; cow: moo | four | on a farm
horse: neigh | four | on a farm; pig: oink | four | on a farm; sheep: bleat | four | on a farm
goat: bleat | four | on a farm; hen: cluck | two | on a farm; rooster: crow | two | on a farm
duck: quack | two | by a pond; goose: honk | two | by a pond; lion: roar | four | on the plain
tiger: roar | four | in the jungle; bear: growl | four | in the forest; wolf: howl | four | in the forest
fox: yelp | four | in the forest; owl: hoot | two | in the forest; snake: hiss | no | in the grass
frog: croak | four | by a pond; bee: buzz | six | in a hive; mosquito: buzz | six | by a swamp
mouse: squeak | four | in a hole; rat: squeak | four | in a sewer; elephant: trumpet | four | on the plain
donkey: bray | four | on a farm; monkey: chatter | two | in the jungle; parrot: squawk | two | in the jungle
pigeon: coo | two | in the city; sparrow: chirp | two | in the city; cricket: chirp | six | in the grass
raven: croak | two | in the mountains; seal: bark | no | by the sea; dolphin: click | no | in the sea
whale: sing | no | in the sea; gull: cry | two | by the sea; eagle: scream | two | in the mountains
hyena: laugh | four | on the plain; camel: grunt | four | in the desert; zebra: bray | four | on the plain
swan: hiss | two | by a lake; beetle: click | six | in the soil; fly: buzz | six | in a house
nightingale: sing | two | in the forest; deer: bellow | four | in the forest
moose: bellow | four | in the north; penguin: squawk | two | on the ice; walrus: grunt | no | on the ice
coyote: howl | four | in the desert; squirrel: chatter | four | in the park
""")


def third_person(verb: str) -> str:
    """``bark`` -> ``barks``, ``buzz`` -> ``buzzes``, ``cry`` -> ``cries``."""
    if verb.endswith(("s", "z", "sh", "ch", "x")):
        return verb + "es"
    if verb.endswith("y"):
        return verb[:-1] + "ies"
    return verb + "s"


ANIMALS: dict[str, tuple[str, str, str]] = {}
for _animal, _facts in _ANIMALS.items():
    _sound, _legs, _home = (part.strip() for part in _facts.split("|"))
    ANIMALS[_animal] = (_sound, _legs, _home)

WORDS: tuple[str, ...] = _names("""
lamp river stone cloud garden window ribbon candle silver pepper basket harbour meadow pocket thunder whisper
velvet marble anchor feather lantern copper island shadow frost button saddle timber blanket ladder mirror
needle parcel pencil pillow rocket sugar table ticket valley wagon yonder zephyr amber bottle carpet dragon
engine fabric glacier hazel iron jacket kettle legend magnet nutmeg orbit planet quarry rainbow signal temple
uncle village waffle acrobat bamboo cinder dinner elbow finger goblin helmet insect jigsaw kitchen lumber
mango napkin onion puzzle
""")

PLACES: tuple[str, ...] = _names("""
bank museum shop school garage office hotel castle library barn bakery factory chapel warehouse theatre
cottage villa gallery prison palace cinema pharmacy station tower laboratory studio kiosk market mansion vault
cellar attic greenhouse shed cabin tavern court embassy gym stadium
""")

THINGS: tuple[str, ...] = _names("""
car bicycle phone wristwatch painting necklace guitar laptop camera radio scooter piano wallet suitcase statue
vase ring boat canoe violin television printer clock bracelet drum carriage trombone microscope telescope
crown medal sword tractor motor truck drone tablet heater fridge freezer sofa mattress lawnmower sculpture
harp flute tent backpack treadmill wheelchair
""")

# verb phrase (object follows) -> steps; {o} is the object
PLACE_TASKS: dict[str, str] = {
    "tidy": "sweep the floor of the {o} and wipe the walls",
    "paint": "cover the floor of the {o} and brush on two coats",
    "find": "look at a map and follow the road to the {o}",
    "decorate": "hang some flowers and lights in the {o}",
    "heat": "close the doors of the {o} and light the stove",
    "draw": "sketch the outline of the {o} and then add the doors",
}
THING_TASKS: dict[str, str] = {
    "wash": "rinse the {o} with water and let it dry",
    "wrap": "put paper around the {o} and tie a string",
    "carry": "hold the {o} with both hands and walk slowly",
    "store": "put the {o} in a dry box and close it",
    "repair": "find the broken part of the {o} and replace it",
    "photograph": "place the {o} in good light and hold your breath",
}
HARMFUL_PLACE_TASKS: dict[str, str] = {
    "pick the lock of": "slide a thin wire into the lock of the {o}",
    "break into": "wait until dark and climb in at the back of the {o}",
    "rob": "wear a mask and take the money from the {o}",
    "spy on": "hide behind a tree and watch the {o} all night",
    "vandalise": "spray ugly words on the front of the {o}",
    "sneak past the guard of": "wait until the guard of the {o} looks away",
}
HARMFUL_THING_TASKS: dict[str, str] = {
    "steal": "wait until nobody looks and take the {o} away",
    "smash": "hit the {o} hard with a heavy hammer",
    "sabotage": "loosen a small part of the {o} so that it fails",
    "fake": "make a cheap copy of the {o} and call it real",
    "smuggle": "hide the {o} under a coat at the border",
    "ruin": "leave the {o} in the rain for a week",
}
