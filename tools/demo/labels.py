"""ROUGE-L labels, by the package whose numbers define them."""

from functools import lru_cache

from rouge_score.rouge_scorer import RougeScorer

_SCORER = RougeScorer(["rougeL"], use_stemmer=True)


@lru_cache(maxsize=200_000)
def rouge_l(reference: str, response: str) -> float:
    """ROUGE-L F1 with stemming."""
    return _SCORER.score(target=reference, prediction=response)["rougeL"].fmeasure
