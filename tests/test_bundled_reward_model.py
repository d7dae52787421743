"""The bundled reward model on examples written for this test; it has seen none of them."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import cache
from random import Random
from typing import TYPE_CHECKING

import pytest

from tpo_modules.scorers.base import Reward
from tpo_modules.scorers.bundled import base_model_path, bundled_path

if TYPE_CHECKING:
    from tpo_modules.scorers.base import Scorer

MAX_BYTES = 5_000_000
MIN_ACCURACY = 0.95

EXAMPLES: tuple[tuple[str, str], ...] = (
    (
        "Why is the sky blue?",
        "Sunlight holds all colours. Air molecules scatter short wavelengths, such as blue, far more "
        "than long ones, such as red. So blue light reaches our eyes from every part of the sky.",
    ),
    (
        "How do I boil an egg so that the yolk stays soft?",
        "Lower the egg into boiling water and set a timer for six minutes. Then put it into cold "
        "water at once, so that it stops cooking. Peel it and serve it with a little salt.",
    ),
    (
        "Write a Python function that reverses a string.",
        "```python\ndef reverse(text):\n    return text[::-1]\n```\n\nThe slice walks through the "
        "string backwards, so `reverse('abc')` gives `'cba'`.",
    ),
    (
        "What is the derivative of x^3 + 2x?",
        "By the power rule the derivative of x^3 is 3x^2, and that of 2x is 2. "
        "So the derivative is 3x^2 + 2.",
    ),
    (
        "My friend forgot my birthday and I feel hurt. What should I say to her?",
        'Choose a calm moment and tell her how it felt, without blaming her: "I was sad that you '
        'forgot my birthday, because you matter to me." Then listen to her side. '
        "Most likely she did not mean it, and she will be glad that you told her.",
    ),
    (
        "Who invented the telephone?",
        "Alexander Graham Bell is usually credited with it: he received the patent in 1876.",
    ),
    (
        "Give me three tips for falling asleep faster.",
        "1. Go to bed at the same time every day.\n2. Put your phone away an hour before.\n"
        "3. Keep the room cool, dark and quiet.",
    ),
    (
        "Explain recursion to a beginner.",
        "Recursion means that a function calls itself on a smaller version of the problem. It needs a "
        "base case that stops it. To count down from three, for example, say three and then count "
        "down from two, until you reach zero.",
    ),
    (
        "What is the difference between a virus and a bacterium?",
        "Bacteria are living cells that can multiply on their own, and antibiotics kill many of them. "
        "Viruses are far smaller and need a host cell to multiply, so antibiotics do not work on them.",
    ),
    (
        "Write a short poem about autumn.",
        "The maple lets its crimson go,\nthe wind is cool, the sun is low,\nand every leaf upon the "
        "ground\nremembers summer without sound.",
    ),
    (
        "Translate 'good morning, my friend' into Spanish.",
        'In Spanish you say: "Buenos días, mi amigo", or "mi amiga" to a woman.',
    ),
    (
        "How does a vaccine work?",
        "A vaccine shows the immune system a harmless piece of a germ. The body learns to recognise it "
        "and keeps memory cells. When the real germ comes, it can answer quickly, before you get ill.",
    ),
    (
        "What should I pack for a weekend of hiking?",
        "Take sturdy boots, a rain jacket, a warm layer and spare socks. Bring a map, a headlamp, a "
        "first-aid kit, enough water and some energy-rich food. Keep the pack as light as you can.",
    ),
    (
        "A train travels 180 km in 2 hours. What is its average speed?",
        "Average speed is distance over time: 180 km / 2 h = 90 km/h.",
    ),
    (
        "Summarise the plot of Cinderella in two sentences.",
        "Cinderella, treated as a servant by her stepmother, goes to the royal ball with the help of a "
        "fairy godmother and must leave at midnight, losing a glass slipper. The prince searches for "
        "the owner of the slipper, finds her, and marries her.",
    ),
    (
        "How can I remove a red wine stain from a carpet?",
        "Blot the stain with a clean cloth; don't rub. Pour a little sparkling water on it and blot "
        "again. Then cover it with salt or baking soda, let it dry overnight, and vacuum.",
    ),
    (
        "What causes tides?",
        "Tides are caused mainly by the gravity of the moon, which pulls the water on the near side "
        "more strongly than on the far side. The sun adds to it, so tides are highest when both line up.",
    ),
    (
        "Write an SQL query that counts the orders of each customer.",
        "```sql\nSELECT customer_id, COUNT(*) AS orders\nFROM orders\nGROUP BY customer_id;\n```\n"
        "It returns one row for each customer with the number of their orders.",
    ),
    (
        "Should I learn the guitar or the piano first?",
        "Both are good choices. The piano makes music theory easier to see and sounds clean from the "
        "first day, while a guitar is cheap and easy to carry. Choose the one whose music you love, "
        "because you will practise it more.",
    ),
    (
        "What is inflation?",
        "Inflation is a general rise in prices over time. As it goes on, the same amount of money buys "
        "less. Central banks try to keep it low and stable, often at about two per cent a year.",
    ),
    (
        "How do I apologise to a customer for a late delivery?",
        "Dear customer,\n\nwe are sorry that your parcel arrives later than promised. A fault at our "
        "warehouse held it up; it is on its way now and should be with you on Friday. As an apology we "
        "have refunded the shipping cost.\n\nKind regards,\nThe service team",
    ),
    (
        "Name five animals that live in the desert.",
        "Five desert animals are the camel, the fennec fox, the scorpion, the rattlesnake and the "
        "meerkat.",
    ),
    (
        "Why do cats purr?",
        "Cats purr mostly when they are content, but also to calm themselves when they are hurt or "
        "afraid. Kittens purr so that their mother finds them. Small muscles in the larynx make the "
        "sound as the cat breathes.",
    ),
    (
        "How do I center a div in CSS?",
        "Make the parent a flex container:\n\n```css\n.parent {\n  display: flex;\n  "
        "justify-content: center;\n  align-items: center;\n}\n```\n\nThis centres the child both ways.",
    ),
    (
        "Is it safe to eat raw cookie dough?",
        "It is better not to. Raw eggs may carry salmonella, and raw flour may carry E. coli. Use "
        "pasteurised eggs and heat-treated flour if you want to eat it unbaked.",
    ),
    (
        "What happened on 9 November 1989 in Berlin?",
        "On that day the Berlin Wall fell: East Germany announced that its citizens could cross the "
        "border, and crowds went through the gates that same night.",
    ),
    (
        "Give me an idea for a cheap birthday present for my father.",
        "Make him a small photo book of moments that you shared, with a sentence beside each picture. "
        "It costs little, and he will keep it for years.",
    ),
    (
        "How many prime numbers are there below 20?",
        "There are eight: 2, 3, 5, 7, 11, 13, 17 and 19.",
    ),
    (
        "Explain the offside rule in football.",
        "A player is offside if, when the ball is passed to them, they are in the opponents' half and "
        "nearer to the goal line than both the ball and the second-last defender. It only counts if "
        "they take part in the play.",
    ),
    (
        "How do I politely decline a wedding invitation?",
        "Thank the couple warmly, say early and clearly that you cannot come, and wish them well: "
        '"Thank you so much for inviting me. Sadly I can\'t be there, but I wish you a wonderful day!" '
        "You don't need to give a long reason.",
    ),
    (
        "What is photosynthesis?",
        "Photosynthesis is how plants make sugar from carbon dioxide and water with the energy of "
        "light. It takes place in the chloroplasts and sets oxygen free.",
    ),
    (
        "Write a shell command that finds all files larger than 100 MB.",
        "Run `find . -type f -size +100M`. It lists every regular file above 100 MB in the current "
        "folder and below.",
    ),
    (
        "How can I save money on groceries?",
        "Plan your meals for the week and write a list. Buy staples such as rice and beans in bulk, "
        "choose store brands and fruit of the season, and never shop when you are hungry.",
    ),
    (
        "Why did the Roman Empire fall?",
        "There was no single cause. Civil wars, a weak economy, plague and corruption wore it down from "
        "within, while Goths, Vandals and Huns pressed on its borders. In 476 the last emperor in the "
        "west was deposed.",
    ),
    (
        "What does the word 'ephemeral' mean? Use it in a sentence.",
        '"Ephemeral" means lasting only a very short time. For example: "The beauty of the cherry '
        'blossom is ephemeral."',
    ),
    (
        "I have a headache after looking at a screen all day. What helps?",
        "Rest your eyes: every twenty minutes look at something far away for twenty seconds. Drink "
        "water, dim the screen, and take a walk. If the pain is strong or keeps coming back, see a "
        "doctor.",
    ),
    (
        "Solve the equation 3x - 7 = 11.",
        "Add 7 to both sides: 3x = 18. Divide by 3: x = 6.",
    ),
    (
        "What is a black hole?",
        "A black hole is a region of space where gravity is so strong that nothing, not even light, "
        "can leave it. Many form when a massive star collapses at the end of its life.",
    ),
    (
        "Suggest a vegetarian dinner that takes less than half an hour.",
        "Try chickpea curry: fry an onion with garlic and curry powder, add a tin of chickpeas and a "
        "tin of tomatoes, and simmer for fifteen minutes. Stir in some spinach and serve it with rice.",
    ),
    (
        "How do I write a good cover letter?",
        "Keep it to one page. Open with the position and why it interests you, show by one or two "
        "concrete results that you can do the work, and close with a friendly offer to talk. Write a "
        "new one for each company.",
    ),
    (
        "What is the difference between a list and a tuple in Python?",
        "A list can be changed after it was made; a tuple cannot. So tuples can serve as dictionary "
        "keys, while lists are the choice for collections that grow. Lists are written with [] and "
        "tuples with ().",
    ),
    (
        "How do volcanoes form?",
        "Most volcanoes form where tectonic plates meet or part. Rock melts deep below, and the magma "
        "rises because it is lighter than the rock around it. When it breaks through the crust, lava "
        "and ash build up the mountain.",
    ),
    (
        "Who was Marie Curie?",
        "Marie Curie was a Polish-French physicist and chemist who studied radioactivity. She was the "
        "first woman to win a Nobel Prize, and the first person to win it in two sciences.",
    ),
    (
        "Plan a relaxed day in Lisbon for me.",
        "Begin with coffee and a custard tart in Belém and visit the monastery. At noon ride tram 28 "
        "up to Alfama and have grilled fish for lunch. In the evening watch the sunset from a "
        "viewpoint and listen to fado.",
    ),
    (
        "How often should I water a cactus?",
        "About every two weeks in summer and once a month in winter. Let the soil dry out completely "
        "in between.",
    ),
)


def off_topic(rng: Random, index: int) -> str:
    """Give the answer to another question."""
    others = [answer for place, (_, answer) in enumerate(EXAMPLES) if place != index]
    return rng.choice(others)


def repetitive(rng: Random, index: int) -> str:
    """Make an answer loop in one of the ways in which small models do."""
    answer = EXAMPLES[index][1]
    parts = re.split(r"(?<=[.!?])\s+", answer)
    words = answer.split()
    middle = len(words) // 2
    loops: Sequence[Callable[[], str]] = (
        lambda: " ".join([answer] * 3),
        lambda: " ".join([*parts, *[parts[-1]] * 6]),
        lambda: " ".join([parts[0]] * 8),
        lambda: " ".join([*words[:middle], *words[middle - 4 : middle] * 10]),
        lambda: " ".join([*words[:middle], *[words[middle]] * 30]),
    )
    return rng.choice(loops)()


def truncated(rng: Random, index: int) -> str:
    """Cut an answer at half its length, in the middle of a sentence."""
    answer = EXAMPLES[index][1]
    if rng.random() < 0.5:
        return answer[: len(answer) // 2].rstrip(" .!?")
    words = answer.split(" ")
    return " ".join(words[: len(words) // 2]).rstrip(" .!?")


def refused(rng: Random, index: int) -> str:
    """Refuse, though there is no harm in any of the questions."""
    return rng.choice(
        [
            "Sorry, but I'm not allowed to talk about this.",
            "I can't help you here, I'm afraid. Please ask somebody else.",
            "As a language model I must decline to answer this question.",
            "This is something that I won't do, since it could be unsafe.",
        ]
    )


@cache
def bundled_scorer() -> Scorer:
    """Load the model once for this file."""
    from tpo_modules.scorers.reward_model import RewardModelScorer

    return RewardModelScorer("bundled")


@pytest.mark.local_model
@pytest.mark.parametrize("spoil", [off_topic, repetitive, truncated, refused])
def test_prefers_the_good_answer(spoil: Callable[[Random, int], str]) -> None:
    rng = Random(0)
    lost: list[str] = []
    for index, (query, answer) in enumerate(EXAMPLES):
        worse = spoil(rng, index)
        good, bad = bundled_scorer().score(query, [answer, worse])
        if good <= bad:
            lost.append(f"{query} -> {worse!r}: {good:.2f} <= {bad:.2f}")
    assert len(EXAMPLES) >= 40
    assert 1 - len(lost) / len(EXAMPLES) >= MIN_ACCURACY, "\n".join(lost)


@pytest.mark.local_model
def test_rewards_stay_in_a_sane_range() -> None:
    texts = ["", ".", "the " * 500, *(answer for _, answer in EXAMPLES)]
    rewards = bundled_scorer().score("Why is the sky blue?", texts)
    assert all(-10 < reward < 10 for reward in rewards)


@pytest.mark.local_model
def test_what_the_model_does_not_read_is_noted() -> None:
    ends = "bread flour water " * 54
    texts = [f"{ends}{middle * 40}{ends}" for middle in ("good dough ", "kill bomb ")]
    query = "How do I bake bread?"
    first, second = bundled_scorer().score(query, texts)
    assert first == pytest.approx(second, abs=1e-4), "they differ in the middle only"
    notes = [reward.notes for reward in (first, second) if isinstance(reward, Reward)]
    assert notes == [("response cut by 84 tokens",)] * 2
    rewards = bundled_scorer().score(query * 80, ["Mix flour.", ends])
    cuts = [[n.split()[0] for n in r.notes] for r in rewards if isinstance(r, Reward)]
    assert cuts == [["query"], ["query"]]
    (whole,) = bundled_scorer().score(query, [ends])
    assert isinstance(whole, Reward)
    assert whole.notes == ()


@pytest.mark.local_model
def test_cuts_of_the_scorer_are_the_models_own() -> None:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    bundled_scorer().score("Hi.", ["Hi."])  # makes the model known
    model = AutoModelForSequenceClassification.from_pretrained(bundled_path())
    tokenizer = AutoTokenizer.from_pretrained(bundled_path())
    query, response = "How do I bake bread?", "bread, flour, water " * 70
    with torch.inference_mode():
        expected = float(model(**tokenizer(query, response, return_tensors="pt")).logits)
    assert bundled_scorer().score(query, [response]) == pytest.approx([expected], abs=1e-4)


def test_weights_are_small_and_ordinary() -> None:
    sizes = {path.name: path.stat().st_size for path in bundled_path().iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= sizes.keys()
    assert sum(sizes.values()) <= MAX_BYTES


def test_base_model_is_a_folder_or_the_hub_id() -> None:
    base = base_model_path()
    assert base == "sentence-transformers/all-MiniLM-L6-v2" or base.endswith("model")
