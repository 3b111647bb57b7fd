PAGE = "notebooks/14_several_pictures.ipynb"

CLAIMS = []

ASIDE = [
    '**"640 tokens" of LLaVA-NeXT**',  # the budget of papers
    "pruned from 2,880 to 320 tokens",  # reported
    "all 512 tokens, or half of them?",
    "Of 384 tokens the first frame takes 256.",  # asserted on the page
    "with 128 tokens for five frames",  # asserted on the page
]
