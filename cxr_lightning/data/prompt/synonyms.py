"""What observations, organs and their states are called, in the form that `lexicon.py` describes.

What is a synonym of which observation follows the mentions of the CheXpert labeller (Irvin et al.
2019, arXiv 1901.07031, section 2.2), with common abbreviations, British spellings and lay names
added; the wording is this file's own.
"""

FINDINGS = {
    "Pneumonia": "pneumonia, pneumonic, pna, bronchopneumonia, infection, infectious process, "
    "infectious, lung infection, chest infection, pulmonary infection",
    "Pneumothorax": "pneumothorax, pneumothoraces, ptx, collapsed lung, pleural air",
    "Pleural Effusion": "effusion, pleural effusion, parapneumonic effusion, pleural fluid, "
    "hemothorax, haemothorax, hydrothorax, empyema, chylothorax",
    "Pleural Effusion+Pneumothorax": "hydropneumothorax, hemopneumothorax, haemopneumothorax",
    "Cardiomegaly": "cardiomegaly, cardiac enlargement, heart enlargement, big heart, large heart, "
    "huge heart, massive heart, bigger heart",
    "Enlarged Cardiomediastinum": "enlarged cardiomediastinum, mediastinal widening, "
    "widened mediastinum, wide mediastinum, mediastinal enlargement, mediastinal mass",
    "Edema": "edema, oedema, pulmonary edema, pulmonary oedema, interstitial edema, "
    "interstitial oedema, alveolar edema, alveolar oedema, interstitial pulmonary edema, "
    "interstitial pulmonary oedema, alveolar pulmonary edema, heart failure, "
    "congestive heart failure, cardiac failure, chf, congestion, vascular congestion, "
    "pulmonary vascular congestion, pulmonary congestion, venous congestion, fluid overload, "
    "volume overload, cephalization, kerley b line, kerley line",
    "Consolidation": "consolidation, consolidative opacity, consolidative change, "
    "airspace consolidation, air space consolidation, air bronchogram, consolidated",
    "Lung Opacity": "opacity, lung opacity, opacification, pulmonary opacity, airspace opacity, "
    "air space opacity, infiltrate, infiltration, airspace disease, air space disease, "
    "ground glass, ground glass opacity, ggo, haziness, interstitial lung disease, "
    "interstitial disease, interstitial marking, interstitial pattern, interstitial change, "
    "reticular marking, reticular pattern, reticulation, white out, whiteout",
    "Lung Lesion": "lung lesion, lesion, pulmonary lesion, nodule, lung nodule, pulmonary nodule, "
    "mass, lung mass, pulmonary mass, tumor, tumour, lung tumor, lung tumour, neoplasm, carcinoma, "
    "cancer, lung cancer, malignancy, metastasis, metastases, lung metastases, "
    "pulmonary metastases, metastatic disease, granuloma, nodular density, cavitary lesion",
    "Atelectasis": "atelectasis, atelectases, atelectatic, atelectatic change, collapse, "
    "lung collapse, lobar collapse, collapsed lobe, volume loss",
    "Pleural Other": "pleural other, pleural thickening, pleural plaque, pleural scarring, "
    "pleural scar, pleural calcification, fibrothorax, pleural disease, pleural fibrosis",
    "Fracture": "fracture, fx, rib fracture, clavicle fracture, clavicular fracture, "
    "sternal fracture, vertebral fracture, compression fracture, vertebral compression fracture, "
    "compression deformity, broken rib, broken clavicle, broken collarbone, broken bone",
    "Support Devices": "support device, medical device, device, pacemaker, pacer, pacing lead, "
    "pacemaker lead, lead, lead icd, icd, aicd, defibrillator, endotracheal tube, et tube, ett, "
    "intubated, intubation, tracheostomy, tracheostomy tube, tracheostomy cannula, "
    "nasogastric tube, ng tube, ngt, enteric tube, orogastric tube, og tube, feeding tube, "
    "dobhoff tube, dobhoff, chest tube, chest drain, pleural drain, pigtail catheter, drain, "
    "catheter, central line, central venous line, central venous catheter, cvc, picc, picc line, "
    "port a cath, portacath, mediport, swan ganz, pa catheter, swan ganz catheter, "
    "dialysis catheter, hickman line, hickman catheter, balloon pump, iabp, lvad, ecmo cannula, "
    "valve prosthesis, prosthetic valve, stent, sternotomy wire, sternal wire, "
    "median sternotomy wire, surgical clip, hardware, line and tube, tube and line, port, line, "
    "ij line, line or tube, tube or line, wire, tube",
}

LESSER = ("congestion", "cephalization", "overload")
"""Ends of names of what can be there without the rest of its observation, as congestion without
edema."""

ORGANS = {
    "heart": "heart, heart size, cardiac silhouette, cardiac size, cardiac contour, cardiac, "
    "heart shadow, cardiac shadow, heart silhouette, size of the heart, cardiothoracic ratio, ctr",
    "mediastinum": "mediastinum, cardiomediastinum, mediastinal, cardiomediastinal, "
    "mediastinal contour, mediastinal silhouette, cardiomediastinal silhouette, "
    "cardiomediastinal contour, superior mediastinum",
    "lung": "lung, lung field, pulmonary, lung parenchyma, lung and pleura",
    "pleural space": "costophrenic angle, costophrenic sulcus, costophrenic sulci, cp angle, "
    "pleural space, pleural recess",
    "bone": "bone, bony, osseous, osseous structure, bony structure, bony thorax, rib, skeleton",
    "chest": "chest, thorax",
    "other": "aorta, aortic, hila, hilar, hilum, hilar contour, vasculature, "
    "pulmonary vasculature, vascularity, pulmonary vascularity, trachea, diaphragm, hemidiaphragm, "
    "soft tissue, abdomen, upper abdomen, spine, pleura, pleural",
}

NORMAL_MEANS_ABSENT = {
    "heart": "Cardiomegaly",
    "mediastinum": "Enlarged Cardiomediastinum",
    "lung": "Lung Opacity",
    "pleural space": "Pleural Effusion",
    "bone": "Fracture",
}
"""Observation that is absent where an organ is normal."""

ABNORMAL = {
    "enlarged": {"heart": "Cardiomegaly", "mediastinum": "Enlarged Cardiomediastinum"},
    "blunted": {"pleural space": "Pleural Effusion"},
    "collapsed": {"lung": "Pneumothorax"},
    "fluid in": {"lung": "Edema", "pleural space": "Pleural Effusion"},
    "fluid around": {"lung": "Pleural Effusion"},
    "air in": {"pleural space": "Pneumothorax"},
    "broken": {"bone": "Fracture"},
}
"""What a predicate says of an organ."""

LUNG = ("Lung Opacity", "Lung Lesion", "Edema", "Consolidation", "Pneumonia", "Atelectasis")
ACUTE = ("Lung Opacity", "Edema", "Consolidation", "Pneumonia", "Pneumothorax", "Pleural Effusion")
"""What "clear lungs" and "no acute process" deny; the heart may be large, or a nodule old."""

PREDICATES = {
    "enlarged": "enlarged, enlargement, widened, widening, wide, prominent, increased, dilated",
    "blunted": "blunted, blunting, obscured",
    "collapsed": "collapsed",
    "fluid in": "fluid in, fluid on, water in, water on, fluid within, liquid in",
    "fluid around": "fluid around, water around, liquid around, fluid surrounding",
    "air in": "air in, air within",
    "broken": "broken, fractured",
    "normal": "normal, unremarkable, healthy, within normal limit, wnl, all clear, nil acute, nad, "
    "nothing abnormal, negative chest, negative cxr, negative study, negative film, "
    "negative radiograph, negative x ray",
    "clear": "clear, sharp, intact",
    "abnormality": "abnormality, disease, process, pathology, abnormal finding, "
    "pathological finding",
    "finding": "finding",
}
"""`abnormality` and `finding`, where negated, are `normal`; `clear` needs an organ."""
