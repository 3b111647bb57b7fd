from prose import bench

PAGE = "notebooks/09_choosing.ipynb"
CLAIMS = [("over all {} questions", lambda: [len(bench("full").pictures())])]
ASIDE = [  # asserted by cells of the page, or reported
    "DivPrune and DPP need 12 tokens of 256 to know the answer, FoPru 25 to 48",
    "in tokens of 256",
    "on LLaVA-1.5-7B at 64 tokens",
    "the base with renumbered ids 92.2 %, original ids alone 90.6 %, a logarithmic weight alone "
    "91.0 %, and merging, weight and original ids together 96.5 % (reported",
]
