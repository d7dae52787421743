"""The judge: an LM as a scorer rates one response."""

import dspy


class RateResponse(dspy.Signature):
    """Rate how well the answer serves the user who asked the query.

    Consider whether it is correct, complete, clear and safe, and whether it does what was asked. Use the whole scale from 1 (useless) to 10 (could hardly be better). Reply with the number alone."""

    query: str = dspy.InputField(desc="what the user asked")
    response: str = dspy.InputField(desc="the answer to rate")
    rating: str = dspy.OutputField(desc="a number from 1 to 10")


class RateWithReason(dspy.Signature):
    """Rate how well the answer serves the user who asked the query.

    First say in two or three sentences what is good and what is missing or wrong. Then end with a line that reads "Rating:" and a number from 1 (useless) to 10 (could hardly be better)."""

    query: str = dspy.InputField(desc="what the user asked")
    response: str = dspy.InputField(desc="the answer to rate")
    rating: str = dspy.OutputField(desc="a short reason, then the rating")
