"""The Revision baseline: a textual loss that never sees a rejected response."""

import dspy


class RevisionLoss(dspy.Signature):
    """Review the answer to the query.

    Say what it does well and what it lacks for this query. Be specific: point at sentences, facts, steps or omissions. Do not write a new answer."""

    query: str = dspy.InputField(desc="what the user asked")
    chosen_response: str = dspy.InputField(desc="the answer under review")
    textual_loss: str = dspy.OutputField(desc="strengths, weaknesses and gaps")
