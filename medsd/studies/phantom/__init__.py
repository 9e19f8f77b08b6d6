"""Synthetic chest radiographs with notes: a 3-D thorax seen through Beer-Lambert attenuation, with eight findings.

`generate_study` makes one study from (seed, index); `write_phantom` makes a folder of DICOM files and its table.
Nothing here stands for a person, and no clinical use follows from a model trained on it: it exercises medsd.
"""

from medsd.studies.phantom.study import PhantomPlan, PhantomStudy, generate_study, plan_study, render_plan
from medsd.studies.phantom.write import write_dicom, write_phantom

__all__ = ["PhantomPlan", "PhantomStudy", "generate_study", "plan_study", "render_plan", "write_dicom", "write_phantom"]
