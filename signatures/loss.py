"""The textual loss: why the chosen response beats the rejected one, and what both lack."""

import dspy


class TextualLoss(dspy.Signature):
    """Two answers to the same query were graded; the first one got the better grade.

    Compare them. Say what makes the first answer better, what the second one gets wrong, and what even the first one still lacks for this query. Be specific: point at sentences, facts, steps or omissions. Do not write a new answer."""

    query: str = dspy.InputField(desc="what the user asked")
    chosen_response: str = dspy.InputField(desc="the answer with the better grade")
    rejected_response: str = dspy.InputField(desc="the answer with the worse grade")
    textual_loss: str = dspy.OutputField(desc="strengths, weaknesses and gaps")


class RewardAwareLoss(dspy.Signature):
    """Two answers to the same query were graded by a reward model; a higher reward is better.

    Explain the difference in reward. Say what earns the first answer its reward, what costs the second one, and what would raise the reward of the first one further. Weigh your words by the gap: a small gap means that details decide. Do not write a new answer."""

    query: str = dspy.InputField(desc="what the user asked")
    chosen_response: str = dspy.InputField(desc="the answer with the higher reward")
    chosen_reward: float = dspy.InputField(desc="reward of the first answer")
    rejected_response: str = dspy.InputField(desc="the answer with the lower reward")
    rejected_reward: float = dspy.InputField(desc="reward of the second answer")
    textual_loss: str = dspy.OutputField(desc="what explains the difference in reward")


class FeedbackLoss(dspy.Signature):
    """Two answers to the same query were graded, and the grader gave reasons; the first one got the better grade.

    Use the grader's reasons. Say what makes the first answer better, what the second one gets wrong, and what even the first one still lacks for this query. Do not write a new answer."""

    query: str = dspy.InputField(desc="what the user asked")
    chosen_response: str = dspy.InputField(desc="the answer with the better grade")
    chosen_feedback: str = dspy.InputField(desc="the grader on the first answer")
    rejected_response: str = dspy.InputField(desc="the answer with the worse grade")
    rejected_feedback: str = dspy.InputField(desc="the grader on the second answer")
    textual_loss: str = dspy.OutputField(desc="strengths, weaknesses and gaps")
