import sys; sys.path.insert(0,'/work/brief')
from nbedit import *
P='/work/wt/new/notebooks/05_order_and_position.ipynb'
swap(P,[
('''    "Table 5.1. The four settings, % of the questions. FoPru on the pocket "
    f"model; {four.id.nunique():,} questions on {four.image.nunique()} "
    "pictures."''','''    "Table 5.1. The four settings, % of the questions. FoPru on the pocket "
    f"model; {four.id.nunique():,} questions on {four.image.nunique()} "
    "pictures; the mean of three trainings."'''),
('''    "the pocket model; 1,600 questions on 500 pictures; bars are 95 % "
    "intervals that hold for all 96 differences of this page at once.",''','''    "the pocket model; 1,600 questions on 500 pictures, the mean of three "
    "trainings; bars are 95 % intervals over pictures that hold for all 96 "
    "differences of this page at once.",'''),
('''    "order, % of the questions. FoPru on the pocket model."''','''    "order, % of the questions. FoPru on the pocket model, the mean of three "
    "trainings."'''),
('''    "pocket model; 1,600 questions on 500 pictures; 95 % intervals that "
    "hold for all 96 differences at once.",''','''    "pocket model; 1,600 questions on 500 pictures, the mean of three "
    "trainings; 95 % intervals that hold for all 96 differences at once.",'''),
('''part = sweep[sweep.retention.isin(budgets)]
part = part.assign(''','''half = sweep[sweep.method == "fopru-mass"].id.unique()
part = sweep[sweep.retention.isin(budgets) & sweep.id.isin(half)]
part = part.assign('''),
('''    "the tokens. Pocket model, 1,600 questions on 500 pictures; single cells "
    "are good to about two points either way.",''','''    "the tokens. Pocket model, 800 questions on 250 pictures, the mean of "
    "three trainings.",'''),
])
