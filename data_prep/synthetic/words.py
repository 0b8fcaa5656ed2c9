"""The words that annotators of synthetic pedestrians use, attribute by attribute.

Tables only. "proper" words are true; "loose" words are what a careless eye or pen
makes of it. A phrase may hold {colour}.
"""

COLOURS = {
    "black": ("black", "black", "black", "jet black"),
    "white": ("white", "white", "white", "bright white"),
    "grey": ("grey", "gray", "grey"),
    "red": ("red", "red", "bright red"),
    "orange": ("orange",),
    "yellow": ("yellow", "yellow", "bright yellow"),
    "green": ("green", "green", "dark green"),
    "blue": ("blue", "blue", "blue", "royal blue"),
    "navy": ("navy", "navy blue", "dark blue"),
    "purple": ("purple", "violet"),
    "pink": ("pink", "pink", "light pink"),
    "brown": ("brown", "brown", "brown", "dark brown"),
    "beige": ("beige", "tan", "cream"),
    "blond": ("blond", "blonde", "fair"),
}
LOOSE_COLOURS = {
    "black": ("dark", "dark grey"),
    "white": ("light", "cream", "pale"),
    "grey": ("light", "dark", "silver"),
    "red": ("orange", "maroon"),
    "orange": ("red", "yellow"),
    "yellow": ("orange", "gold"),
    "green": ("teal", "dark"),
    "blue": ("light blue", "purple"),
    "navy": ("black", "blue", "dark"),
    "purple": ("blue", "dark pink"),
    "pink": ("red", "purple"),
    "brown": ("dark", "tan"),
    "beige": ("white", "light brown", "khaki"),
    "blond": ("light", "golden"),
}

# Who it is, by gender and age: with the age told, and without.
AGED_NOUNS = {
    ("man", "child"): ("boy", "little boy", "young boy", "child", "kid"),
    ("woman", "child"): ("girl", "little girl", "young girl", "child", "kid"),
    ("man", "young"): ("young man", "young guy", "youthful man", "young male"),
    ("woman", "young"): ("young woman", "young lady", "young female", "youthful woman"),
    ("man", "middle-aged"): ("middle-aged man", "grown man", "adult man"),
    ("woman", "middle-aged"): ("middle-aged woman", "grown woman", "adult woman"),
    ("man", "elderly"): ("elderly man", "old man", "senior man", "older gentleman"),
    ("woman", "elderly"): ("elderly woman", "old woman", "senior lady", "older lady"),
}
NOUNS = {
    "man": ("man", "man", "guy", "male", "gentleman"),
    "woman": ("woman", "woman", "lady", "female"),
}
LOOSE_NOUNS = ("person", "pedestrian")

UPPERS = {
    "T-shirt": ("t-shirt", "tee shirt", "tee", "short-sleeved top"),
    "shirt": ("shirt", "button-up shirt", "long-sleeved shirt", "collared shirt"),
    "tank top": ("tank top", "sleeveless top", "sleeveless shirt"),
    "jacket": ("jacket", "zip-up jacket", "open jacket"),
    "coat": ("coat", "long coat", "overcoat"),
    "hoodie": ("hoodie", "hooded sweatshirt", "hooded top"),
    "sweater": ("sweater", "pullover", "jumper", "knitted sweater"),
}
LOOSE_UPPERS = {
    "T-shirt": ("top", "shirt"),
    "shirt": ("top", "shirt"),
    "tank top": ("top", "vest"),
    "jacket": ("top", "coat"),
    "coat": ("jacket", "outer garment"),
    "hoodie": ("top", "sweatshirt"),
    "sweater": ("top", "long-sleeved shirt"),
}
LOWERS = {
    "trousers": ("trousers", "pants", "long pants", "slacks"),
    "jeans": ("jeans", "denim jeans", "denim pants"),
    "shorts": ("shorts", "short pants", "knee-length shorts"),
    "skirt": ("skirt", "short skirt", "knee-length skirt"),
    "long skirt": ("long skirt", "ankle-length skirt", "maxi skirt"),
    "leggings": ("leggings", "tights", "tight pants"),
}
LOOSE_LOWERS = {
    "trousers": ("bottoms", "jeans"),
    "jeans": ("pants", "trousers"),
    "shorts": ("bottoms", "pants"),
    "skirt": ("skirt",),
    "long skirt": ("skirt",),
    "leggings": ("pants", "skinny jeans"),
}
SINGULAR_LOWERS = ("skirt", "long skirt")
SHOES = {
    "sneakers": ("sneakers", "trainers", "running shoes", "tennis shoes"),
    "shoes": ("shoes", "leather shoes", "dress shoes"),
    "boots": ("boots", "ankle boots"),
    "sandals": ("sandals", "open sandals"),
}
LOOSE_SHOES = ("shoes", "footwear")

HAIR = {
    "short": ("short {colour} hair", "short cropped {colour} hair"),
    "shoulder-length": ("shoulder-length {colour} hair", "medium-length {colour} hair"),
    "long": ("long {colour} hair", "long flowing {colour} hair"),
    "tied": ("a long {colour} ponytail", "long {colour} hair tied back"),
}
LOOSE_HAIR = {
    "short": ("{colour} hair", "short hair"),
    "shoulder-length": ("{colour} hair", "long {colour} hair"),
    "long": ("{colour} hair", "long hair"),
    "tied": ("{colour} hair", "a ponytail"),
}
BALD = ("a bald head", "a shaved head", "no hair")

BAGS = {
    "backpack": ("backpack", "rucksack", "back pack"),
    "shoulder bag": ("shoulder bag", "messenger bag", "crossbody bag"),
    "handbag": ("handbag", "hand bag", "purse"),
}
LOOSE_BAGS = ("bag",)
HATS = {
    "cap": ("cap", "baseball cap", "peaked cap"),
    "beanie": ("beanie", "knit hat", "woolly hat"),
    "brimmed hat": ("brimmed hat", "wide-brimmed hat", "sun hat"),
}
LOOSE_HATS = ("hat",)
GLASSES = {
    "glasses": ("glasses", "eyeglasses", "spectacles", "a pair of glasses"),
    "sunglasses": ("sunglasses", "dark glasses", "shades", "a pair of sunglasses"),
}
PHONES = ("phone", "cell phone", "mobile phone")
BAG_PLACES = {
    "backpack": ("", " on {his} back", " over both shoulders"),
    "shoulder bag": ("", " over one shoulder", " across {his} body"),
    "handbag": ("", " in one hand", " at {his} side"),
}
BAG_VERBS = {
    "backpack": ("carrying", "wearing"),
    "shoulder bag": ("carrying", "wearing"),
    "handbag": ("carrying", "holding"),
}
PHONE_VERBS = (
    ("talking", "on {phone}"),
    ("using", "{phone}"),
    ("speaking", "on {phone}"),
)
VEHICLES = {
    "bicycle": ("bicycle", "bike"),
    "scooter": ("scooter", "kick scooter"),
}

STRIPED = (
    "{colour} striped {garment}",
    "{colour} and {second} striped {garment}",
    "{colour} {garment} with {second} stripes",
    "striped {colour} {garment}",
)
CHECKED = (
    "{colour} plaid {garment}",
    "{colour} checked {garment}",
    "{colour} checkered {garment}",
    "{colour} and {second} plaid {garment}",
)
LOGO = (
    "{colour} {garment} with a {second} logo on the chest",
    "{colour} {garment} with a {second} print on the front",
    "{colour} graphic {garment}",
    "{colour} {garment} with a logo",
)
PLAIN = ("plain {colour} {garment}", "{colour} {garment}", "{colour} {garment}")
PATTERNS = {"striped": STRIPED, "checked": CHECKED, "logo": LOGO, "plain": PLAIN}

ACTIONS = {
    "standing": ("standing still", "standing", "standing around", "posing"),
    "walking": ("walking", "strolling along", "walking along", "taking a step"),
    "running": ("running", "jogging", "running along"),
}
FACINGS = {
    "front": ("facing the camera", "facing forward"),
    "back": ("facing away from the camera", "seen from behind"),
    "left": ("seen from the side", "facing left"),
    "right": ("seen from the side", "facing right"),
}

PRONOUNS = {"man": ("he", "his"), "woman": ("she", "her")}
WEARS = (
    "wears",
    "is wearing",
    "is dressed in",
    "has on",
    "is clad in",
    "is clothed in",
)
PRESENT = {
    "carrying": "carries",
    "wearing": "wears",
    "holding": "holds",
    "talking": "talks",
    "speaking": "speaks",
    "using": "uses",
    "smoking": "smokes",
    "riding": "rides",
    "standing": "stands",
    "posing": "poses",
    "walking": "walks",
    "strolling": "strolls",
    "taking": "takes",
    "running": "runs",
    "jogging": "jogs",
    "facing": "faces",
    "seen": "is seen",
}
