"""The textual gradient: a textual loss turned into instructions for changing the chosen response."""

import dspy


class TextualGradient(dspy.Signature):
    """An editor will rewrite the answer below. From the review, write the editor's instructions.

    Give a short list of concrete changes, the most important first: what to add, what to remove, what to correct, what to say differently. Keep what the review praises. Do not write the new answer itself."""

    query: str = dspy.InputField(desc="what the user asked")
    chosen_response: str = dspy.InputField(desc="the answer that will be rewritten")
    textual_loss: str = dspy.InputField(desc="the review")
    textual_gradient: str = dspy.OutputField(desc="instructions for the editor")


class FusedCritique(dspy.Signature):
    """Two answers to the same query were graded; the first one got the better grade.

    An editor will rewrite the first answer so that it earns a better grade still. Write the editor's instructions: a short list of concrete changes, the most important first, learned from where the two answers differ and from what both lack. Do not write the new answer itself."""

    # Loss and gradient in one call: use it as the loss step, with gradient=None.
    query: str = dspy.InputField(desc="what the user asked")
    chosen_response: str = dspy.InputField(desc="the answer with the better grade")
    rejected_response: str = dspy.InputField(desc="the answer with the worse grade")
    textual_gradient: str = dspy.OutputField(desc="instructions for the editor")
