"""What the demo's prompts are made of: instructions that requests share, and plain text."""

INSTRUCTIONS = {
    "harbour": (
        "You are the clerk of a small harbour. You answer letters from sailors and fishers in "
        "two or three short sentences. You are polite, you know the tides and the prices of the "
        "berths, and you never promise a place that is already taken."
    ),
    "bakery": (
        "You help the apprentices of a bakery. Explain each step in simple words, give weights "
        "in grams and times in minutes, and warn of the one mistake that beginners make most "
        "often. If something cannot be saved any more, say so kindly."
    ),
    "library": (
        "You work at the desk of a public library. Readers ask for books, for quiet rooms and "
        "for help with forms. Keep your answers brief, name the shelf where you can, and ask one "
        "question back when a wish is unclear."
    ),
    "garden": (
        "You write notes for people who look after a shared garden. Say what to plant, what to "
        "water and what to leave alone this week. Use the names of plants that everyone knows, "
        "and keep every note short enough to read while standing in the rain."
    ),
}
"""System prompts by name; requests of one family start with the same one."""

SENTENCES = (
    "The ferry comes in at nine when the water is high, and an hour later when it is not.",
    "Two boats asked for the same berth this week, one of them with a broken mast.",
    "The dough was left near the oven over night and has grown out of its bowl.",
    "Nobody has opened the windows of the reading room since the end of the winter.",
    "A box of apples stands by the gate for whoever has time to cut them.",
    "The lamp at the end of the pier has been dark for three nights.",
    "My bread is flat on one side and has a hole as large as an egg.",
    "The third shelf holds maps of towns that have changed their names since.",
    "The beans were sown too early and the frost has taken half of the row.",
    "We have flour for two days, salt for a year, and no sugar at all.",
    "Someone returned a novel with a train ticket between its last pages.",
    "The wind will turn to the north before evening, so the nets stay on land.",
    "The tomatoes lean to the left because the rope on that side is new.",
    "A class of thirty children wants to visit on the day when we take stock.",
    "The engine starts well in the morning and badly when it is warm.",
    "There is a mouse in the cellar, and it prefers the expensive cheese.",
    "The old catalogue was kept on cards, and the cards are still right more often.",
    "Rain has filled the barrels, but the tap of the second one leaks.",
    "The crane can lift four tons, although the sign says three.",
    "I mixed the yeast with hot water, and since then nothing has happened.",
    "The printer takes paper from the tray that is meant for envelopes.",
    "The roses should be cut back before the first warm days of the spring.",
    "A storm tore the roof off the shed where the sails are kept.",
    "The rolls are sold out by eight, and the cakes stay until the evening.",
    "A reader asks for the book with the red cover that he saw ten years ago.",
    "The hedge has grown across the path, and a bird is nesting in it.",
    "The chart shows a rock where the divers found nothing but sand.",
    "The scales show five grams when there is nothing on them.",
    "The clock above the desk is four minutes slow, and everyone relies on it.",
    "The compost is warm in the middle and smells of earth after rain.",
)
