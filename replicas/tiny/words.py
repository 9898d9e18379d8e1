"""The closed vocabulary of the tasks. Each of these words is exactly one token."""


def _split(text: str) -> list[str]:
    return text.split()


NAMES = _split(
    "Maria Anna Jonas Peter Lucia Omar Chen Ivan Sara Nora Felix Greta Hugo Iris Klaus Lena Mateo "
    "Nina Oscar Paula Rosa Samir Tara Uma Victor Wanda Yara Zoe Bruno Carla Diego Elena Farid Gina "
    "Hana Igor Julia Kofi Laura Marco"
)
CITIES = _split(
    "Oslo Paris Lima Cairo Tokyo Delhi Rome Bern Kyiv Quito Seoul Hanoi Lagos Accra Porto "
    "Milan Vienna Prague Dublin Athens Boston Denver Austin Bogota Havana Lisbon Madrid Berlin "
    "Zurich Riga"
)
ITEMS = _split(
    "lamp chair table book phone camera bottle jacket mirror clock pillow blanket basket kettle "
    "keyboard printer guitar drum helmet tent ladder hammer candle vase"
)
COLORS = _split("red blue green black white yellow purple orange brown grey")
DAYS = _split("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
MONTHS = _split(
    "January February March April May June July August September October November December"
)
TABLES = _split("users orders products staff books flights rooms tickets")
CLASSES = _split("User Order Product Book Flight Room Ticket Account Event Sensor Song Player")
VERBS = _split("compute check load save parse count find update format convert")
ANIMALS = _split("fox bear owl cat dog rabbit mouse deer crow frog goat duck")
PLACES = _split("forest river hill garden village lake meadow barn cave bridge")
ADJECTIVES = _split("small brave quiet clever sleepy curious gentle lonely happy old")
FOODS = _split("apples berries bread cheese honey nuts soup cake")
PARCEL_STATES = _split("late sent lost")

# A field with no word list holds a whole number.
FIELDS: dict[str, list[str]] = {
    "name": NAMES,
    "city": CITIES,
    "item": ITEMS,
    "color": COLORS,
    "day": DAYS,
    "month": MONTHS,
    "age": [],
    "price": [],
    "size": [],
    "stock": [],
}

# Whole numbers up to this one are one token each; longer ones fall back to digits.
MAX_NUMBER = 199

VALUE_WORDS: list[str] = sorted(
    {
        word
        for group in (
            NAMES, CITIES, ITEMS, COLORS, DAYS, MONTHS, TABLES, CLASSES, VERBS,
            ANIMALS, PLACES, ADJECTIVES, FOODS, PARCEL_STATES, FIELDS,
        )
        for word in group
    }
)  # fmt: skip
