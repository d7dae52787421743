"""The update: a textual gradient applied to the chosen response, or to the whole pool."""

import dspy


class ResponseUpdate(dspy.Signature):
    """Rewrite the draft answer to the query by following the instructions.

    Reply with the complete new answer to the user and nothing else: no preface, no remarks about the changes."""

    query: str = dspy.InputField(desc="what the user asked")
    chosen_response: str = dspy.InputField(desc="the draft")
    textual_gradient: str = dspy.InputField(desc="how to change the draft")
    response: str = dspy.OutputField(desc="the new answer")


class DraftFreeUpdate(dspy.Signature):
    """Answer the query from scratch, and heed the advice of an editor who has seen earlier answers.

    Reply with the answer to the user and nothing else: do not mention the advice or earlier answers."""

    # Sees no draft, so it cannot copy one: for policies whose updates repeat the chosen response.
    query: str = dspy.InputField(desc="what the user asked")
    textual_gradient: str = dspy.InputField(desc="advice of the editor")
    response: str = dspy.OutputField(desc="the answer")


class PoolUpdate(dspy.Signature):
    """Write a better answer to the query than every earlier one.

    The earlier answers are listed from the best to the worst. Follow the instructions, take what is good from any of them, and leave out what is not. Reply with the complete new answer to the user and nothing else."""

    query: str = dspy.InputField(desc="what the user asked")
    ranked_responses: list[str] = dspy.InputField(desc="earlier answers, the best first")
    textual_gradient: str = dspy.InputField(desc="how to improve on the best one")
    response: str = dspy.OutputField(desc="the new answer")
