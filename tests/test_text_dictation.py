"""Sentences and reports as hospitals dictate them, with what a radiologist reads out of each.

A line is `sentence => findings`, a finding of both sides written once ("both pleural effusion").
"""

import pytest

from vol3d.text.lexicon import swap_sides
from vol3d.text.ontology import SIDES, Finding
from vol3d.text.parser import finding_keys, finding_labels, parse_findings, parse_mentions
from vol3d.text.shorthand import written_out
from vol3d.text.spelling import respelt

SENTENCES = {
    "american": """
Right hilar mass with postobstructive collapse of the right upper lobe. => right atelectasis
Interval re-expansion of the left lower lobe with resolution of collapse. =>
New airspace consolidation in the dependent portions of both lower lobes. => both consolidation
Ground-glass opacities in both lungs without consolidation. =>
Subpleural 3 mm nodule in the left lower lobe is unchanged dating back to 2015. => left pulmonary nodule
The left effusion has resolved, with a new small right effusion. => right pleural effusion
Stable cardiomegaly. Stable small pericardial effusion. => cardiomegaly, pericardial effusion
Mild dilatation of the ascending aorta measuring 4.0 cm. =>
Splenic artery aneurysm measuring 1.2 cm. Normal caliber aorta. =>
Severe atherosclerotic calcifications of the coronary arteries and thoracic aorta. => coronary artery calcification
No evidence of steatosis or cirrhosis. =>
Hemangioma in segment 7. => liver lesion
Numerous hepatic hypodensities compatible with metastases. => liver lesion
Lesions in the spleen and liver are stable. => liver lesion
Gallstones within a contracted gallbladder. => gallstones
Prior cholecystectomy. Spleen is mildly prominent. =>
Spleen: 13.8 cm, enlarged. => splenomegaly
Spleen: Measures 15 cm, consistent with splenomegaly. => splenomegaly
Kidneys/ureters: Symmetric enhancement. No hydronephrosis. Bilateral subcentimeter cysts. => both renal cyst
Left nephrolithiasis. No ureteral stones or hydronephrosis. => left renal stone
Mild to moderate left hydronephrosis with transition at the UPJ. => left hydronephrosis
Resolved left hydronephrosis following stent placement. =>
Persistent moderate right hydronephrosis despite ureteral stent. => right hydronephrosis
Renal cysts bilaterally, largest 4.5 cm on the left. => both renal cyst
Partial small bowel obstruction has resolved. =>
Large bowel obstruction secondary to a sigmoid mass. => bowel obstruction
Moderate sized sliding type hiatal hernia. => hiatal hernia
Paraesophageal hernia. => hiatal hernia
Bilateral fat containing inguinal hernias, left larger than right. => both inguinal hernia
Remote compression deformities of T7, T9 and L1. => vertebral fracture
No acute osseous abnormality. Chronic bilateral rib fractures. =>
Innumerable mixed lytic and sclerotic osseous metastases. => bone metastasis
Left chest tube with trace pneumothorax. => left pneumothorax
Plate-like atelectasis in the left mid lung. => left atelectasis
Rounded opacity in the left lower lobe, probably rounded atelectasis. => left atelectasis
Cardiac: no cardiomegaly. Coronary: mild calcification. => coronary artery calcification
There is a tiny amount of fluid in the pericardial sac. => pericardial effusion
No pleural fluid. No pericardial fluid. =>
Small layering right and moderate loculated left effusions. => both pleural effusion
Right pleural effusion, small. Left pleural effusion, trace. => both pleural effusion
Right: small effusion. Left: no effusion. => right pleural effusion
Right upper lobe: 4 mm nodule. Left lower lobe: Atelectasis. => left atelectasis, right pulmonary nodule
5mm stone in L kidney LP. No R stones. => left renal stone
Neg for PTX/effusion. =>
Cardiomegaly w/o effusion. => cardiomegaly
(+) gallstones, (-) hydronephrosis. => gallstones
Cholelithiasis (+). Hydronephrosis (-). => gallstones
The examination is negative for kidney stones, hydronephrosis, and free fluid. =>
Absence of hydronephrosis. Absence of gallstones. =>
The lungs show no nodule, mass, consolidation, or collapse. =>
Pneumonia cannot be entirely excluded at the left base. => left consolidation
Trace right pleural effusion, decreased from prior. => right pleural effusion
Interval resolution of the previously seen left pleural effusion. =>
Interval decrease in size of the left pleural effusion, now small. => left pleural effusion
Bibasilar dependent changes, likely atelectasis. => both atelectasis
Dependent atelectasis in both lung bases. => both atelectasis
Left basilar opacity may represent atelectasis or pneumonia. => left atelectasis, left consolidation
No focal consolidation, pleural effusion or pneumothorax. =>
There is no evidence of pneumothorax or pleural effusion bilaterally. =>
No pneumothorax. Tiny left apical pneumothorax has resolved. =>
Status post left chest tube placement with residual small left apical pneumothorax. => left pneumothorax
Stable 4 mm nodule in the right upper lobe (series 4, image 52). => right pulmonary nodule
4-mm RUL nodule, unchanged since 2019. => right pulmonary nodule
No suspicious pulmonary nodules or masses. =>
No new or enlarging pulmonary nodule. =>
Moderate centrilobular emphysema, upper lobe predominant. => emphysema
Heart size is at the upper limits of normal. =>
Severe three-vessel coronary artery calcifications. => coronary artery calcification
Atherosclerotic calcification of the aorta and coronary arteries. => coronary artery calcification
The ascending aorta is aneurysmal, measuring 4.5 cm. => aortic aneurysm
Infrarenal abdominal aortic aneurysm measures 5.2 cm, previously 4.9 cm. => aortic aneurysm
Aorta is normal in caliber without aneurysm or dissection. =>
Loculated right hydropneumothorax. => right pleural effusion, right pneumothorax
Improved aeration of the lung bases with near-complete resolution of atelectasis. => atelectasis
Liver: Diffuse hypoattenuation consistent with hepatic steatosis. No focal lesion. => hepatic steatosis
Multiple hepatic cysts, the largest 3.4 cm in segment VII. => hepatic cyst
Innumerable hepatic metastases. => liver lesion
Gallbladder: Surgically absent. =>
GALLBLADDER: Status post cholecystectomy. No biliary ductal dilatation. =>
Layering gallstones without gallbladder wall thickening. => gallstones
Gallbladder contains several small stones. => gallstones
Spleen: Enlarged, measuring 15.2 cm. => splenomegaly
The spleen measures 14.5 cm, mildly enlarged. => splenomegaly
Spleen is normal in size. =>
Hepatosplenomegaly. => splenomegaly
Kidneys: 3 mm nonobstructing stone in the left lower pole. No hydronephrosis. => left renal stone
Right hydronephrosis and hydroureter secondary to a 6 mm obstructing UVJ calculus. => right hydronephrosis
Nonobstructive left nephrolithiasis. => left renal stone
Large volume ascites. => ascites
Trace free fluid in the pelvis. => ascites
No bowel obstruction. =>
Small hiatal hernia. => hiatal hernia
Small fat-containing bilateral inguinal hernias. => both inguinal hernia
Compression deformity of L1 with 30% height loss, age indeterminate. => vertebral fracture
Old healed right rib fractures. =>
Sclerotic lesion in the left iliac bone, likely bone island. => bone metastasis
Degenerative changes of the spine without acute fracture. =>
Adrenals: 1.5 cm left adrenal nodule. =>
Thyroid: 8 mm nodule in the left lobe. =>
Left ovarian cyst measuring 3 cm. =>
Uterus: fibroid. Bladder: stones. =>
Left pleural effusion is larger than right. => both pleural effusion
Lungs and pleura: Small left pleural effusion. Right lung is clear. => left pleural effusion
Compared to prior, right effusion has resolved and the left effusion is unchanged. => left pleural effusion
Mild cardiomegaly with small pericardial effusion. => cardiomegaly, pericardial effusion
Prominent left extrarenal pelvis without frank hydronephrosis. =>
Mild right pelvicaliectasis. => right hydronephrosis
Postoperative changes of right upper lobectomy with small right pleural effusion. => right pleural effusion
Patient is status post repair of hiatal hernia. =>
Suspected pneumonia in the right lower lobe. => right consolidation
Cannot exclude small pericardial effusion. => pericardial effusion
Lungs: Upper lobe predominant paraseptal emphysema; no nodules. => emphysema
Nodules: right upper lobe 5 mm, left lower lobe 6 mm. => both pulmonary nodule
Hepatic lesion previously measuring 2 cm is no longer visualized. =>
Lymph nodes: No enlarged nodes. Bones: L2 superior endplate compression fracture. => vertebral fracture
Bones: Multilevel degenerative change. Mild wedging of T8. => vertebral fracture
No fracture or aggressive osseous lesion. =>
Right inguinal hernia repair. No recurrent hernia. =>
No pericardial effusion, but moderate left pleural effusion. => left pleural effusion
The liver is fatty infiltrated. => hepatic steatosis
Heterogeneous hepatic attenuation, which may reflect focal fatty infiltration. => hepatic steatosis
Right lung: 6 mm nodule in the upper lobe. Left lung: clear. => right pulmonary nodule
Left kidney: 2 cm cyst. Right kidney: No stones. => left renal cyst
A 1.2 cm right hepatic lobe cyst and a 9 mm left renal cyst. => hepatic cyst, left renal cyst
Simple cysts in the liver and both kidneys. => hepatic cyst, both renal cyst
Lytic lesion in the T7 vertebral body concerning for metastasis. => bone metastasis
The small bowel is dilated up to 4 cm, in keeping with obstruction. => bowel obstruction
No hydronephrosis on the right; mild on the left. => left hydronephrosis
Right lower lobe atelectasis, less likely pneumonia. => right atelectasis, right consolidation
Findings favor atelectasis over pneumonia at the left base. => left atelectasis
Stable post-surgical change; no pneumothorax post biopsy of the right upper lobe nodule. => right pulmonary nodule
Small pneumothorax following biopsy of a left lower lobe nodule. => left pneumothorax, left pulmonary nodule
Pleural effusions have resolved. =>
Left pleural effusion has decreased but not resolved. => left pleural effusion
Bones: No fracture. Diffuse sclerotic metastases. => bone metastasis
Common bile duct stone measuring 6 mm. =>
Calculus in the distal left ureter, 4 mm, with mild hydroureteronephrosis. => left hydronephrosis
Polycystic kidney disease. =>
Complex cystic mass in the right kidney. =>
Minimal right apical pneumothorax and bilateral small effusions. => both pleural effusion, right pneumothorax
Consolidative opacity in the posterior right lung base with volume loss. => right atelectasis, right consolidation
There is collapse of the left lower lobe. => left atelectasis
Right lower lobe is collapsed. => right atelectasis
Osseous structures: Severe compression of the L3 vertebral body. => vertebral fracture
Height loss of T11 and L1, chronic. => vertebral fracture
Vertebral body heights are maintained. =>
Enlarged left atrium. =>
Marked steatosis of the liver with sparing near the gallbladder fossa. => hepatic steatosis
No evidence of cholelithiasis, choledocholithiasis, or nephrolithiasis. =>
The gallbladder is without stones. =>
Moderate amount of stool. Scattered diverticula. No obstruction. =>
Pneumonia in the left lower lobe has improved but is still present. => left consolidation
Findings of prior granulomatous disease. Otherwise no nodules. =>
Left upper lobe nodule seen on prior CT has resolved. =>
Left upper lobe nodule seen on the prior CT is stable. => left pulmonary nodule
PE study: no pulmonary embolism. Small R pleural effusion. => right pleural effusion
Small effusion on the L. => left pleural effusion
""",
    "european": """
There is a large left-sided pleural effusion with underlying collapse. => left atelectasis, left pleural effusion
Left lower lobe collapse/consolidation. => left atelectasis, left consolidation
Collapse of the right middle lobe. => right atelectasis
Bilateral basal atelectatic changes. => both atelectasis
Fatty infiltration of the liver; no focal hepatic lesion. => hepatic steatosis
Gall stones are noted within the gall bladder. => gallstones
Bilateral renal cortical cysts noted. => both renal cyst
The left pelvicalyceal system is dilated. => left hydronephrosis
No pelvicalyceal dilatation. =>
No dilatation of the pelvicalyceal systems. =>
Cardiothoracic ratio is increased, in keeping with cardiomegaly. => cardiomegaly
Wedge compression fracture of D12. => vertebral fracture
Vertebral collapse at T6. => vertebral fracture
Collapse of L1 vertebra. => vertebral fracture
Anterior wedging of T11 and T12. => vertebral fracture
There is loss of height of the L3 vertebral body. => vertebral fracture
Hepatic metastases have increased in size and number. => liver lesion
Subcapsular liver lesion measuring 12 mm is unchanged. => liver lesion
Obstructed small bowel loops are seen. => bowel obstruction
Moderate volume ascites. => ascites
Minimal free fluid is noted in the pouch of Douglas. => ascites
No ascites is seen. =>
The abdominal aorta is not aneurysmal. =>
The liver and spleen are enlarged. => splenomegaly
Enlarged liver and spleen. => splenomegaly
The spleen is enlarged, but the liver is not. => splenomegaly
Splenic enlargement, 16 cm craniocaudal. => splenomegaly
Borderline splenomegaly at 13 cm. => splenomegaly
A mass is seen in the left hilum. =>
Cavitating nodule in the apical segment of the right upper lobe. => right pulmonary nodule
Multiple nodules are seen throughout both lungs. => both pulmonary nodule
Innumerable nodules in all lobes. => pulmonary nodule
No pulmonary nodule or mass on the left. =>
Dominant nodule in the left upper lobe measures 1.4 x 1.2 cm. => left pulmonary nodule
A part-solid nodule is seen in the right lower lobe with a 3 mm solid component. => right pulmonary nodule
ICD in situ on the left, with no pneumothorax. =>
The gallbladder is well distended and shows multiple calculi. => gallstones
Spleen is enlarged in size (14.6 cm) and normal in attenuation. => splenomegaly
Spleen is normal in size and attenuation. =>
No evidence of calculus or hydronephrosis in either kidney. =>
No free fluid seen in the abdomen and pelvis. =>
Moderate ascites is seen. => ascites
Wedge compression of L1 vertebral body. => vertebral fracture
Left basal effusion with adjacent lung collapse. => left atelectasis, left pleural effusion
Both lungs are clear. Both costophrenic angles are free. =>
The pleural effusion previously seen on the left is no longer present. =>
Infrarenal AAA measures 5.4 cm, increased from 5.1 cm. => aortic aneurysm
Thoracic aortic aneurysm, 4.7 cm, without dissection. => aortic aneurysm
No thoracic aortic aneurysm or dissection. Heart is mildly enlarged. => cardiomegaly
Right greater than left basilar consolidation. => both consolidation
Left worse than right hydronephrosis. => both hydronephrosis
Hydronephrosis, worse on the left than the right. => both hydronephrosis
Moderate right hydronephrosis with an obstructing 8 mm calculus at the UPJ. => right hydronephrosis
Punctate nonobstructing stones in the kidneys. => renal stone
Punctate nonobstructing stones in the kidneys bilaterally. => both renal stone
""",
    "telegraphic": """
Small b/l pleural effusions w/ adjacent atelectasis. => both atelectasis, both pleural effusion
B/l effusions, R>L. => both pleural effusion
Tiny L apical PTX. => left pneumothorax
s/p R chest tube, tiny residual R apical PTX. => right pneumothorax
s/p CABG. Heart enlarged. => cardiomegaly
Lungs clear w/o consolidation or effusion. =>
Mod R effusion, sm L effusion. => both pleural effusion
4mm RUL nodule, 6mm LLL nodule. => both pulmonary nodule
8 mm GGN in RUL. => right pulmonary nodule
L kidney: 4 mm stone. R kidney: nl. => left renal stone
Lt pleural effusion, moderate. => left pleural effusion
Rt. renal calculus 6 mm. => right renal stone
Bilat. pleural effusions. => both pleural effusion
Bilat renal cysts. => both renal cyst
Mild hydro on the left. => left hydronephrosis
Mod-severe R hydro. => right hydronephrosis
No hydro. =>
Hx of AAA s/p EVAR. =>
Mild emphysema, coronary calcs. => coronary artery calcification, emphysema
T12 comp fx, chronic. => vertebral fracture
L1 compression fx w/ 40% height loss. => vertebral fracture
GB: multiple stones, no wall thickening. => gallstones
Moderate HH. =>
""",
    "structured": """
Pleura: Small right effusion. => right pleural effusion
Pneumothorax: None. Consolidation: Right lower lobe. => right consolidation
Hydronephrosis: Absent. Renal calculi: Present, bilateral. => both renal stone
Heart: Enlarged. => cardiomegaly
Heart: Mildly enlarged. No pericardial effusion. => cardiomegaly
Heart size: Enlarged. => cardiomegaly
Heart size: Normal. =>
Heart: Not enlarged. =>
Spleen: Mildly enlarged at 14 cm. => splenomegaly
Spleen: Not enlarged. =>
Liver: Fatty. => hepatic steatosis
Liver: 2 cm simple cyst in segment 8. => hepatic cyst
Liver: Multiple hypodense lesions, largest 3 cm. => liver lesion
Gallbladder: Multiple calculi. => gallstones
Gallbladder: Present without calculi. =>
Right kidney: 1.2 cm simple cyst. Left kidney: mild hydronephrosis. => left hydronephrosis, right renal cyst
Kidneys: Normal. Ureters: 5 mm stone in the left distal ureter. =>
Aorta: 4.8 cm infrarenal aneurysm. => aortic aneurysm
Aorta: Normal caliber. No aneurysm. =>
Coronary arteries: Severe calcification. => coronary artery calcification
Coronary arteries: No calcification. =>
Bones: Compression deformity of T8. => vertebral fracture
Bones: Lytic lesions in the pelvis. => bone metastasis
Bowel: No obstruction. =>
Bowel: Small bowel obstruction with transition in the RLQ. => bowel obstruction
Bowel: Hiatal hernia. No obstruction. => hiatal hernia
Peritoneum: Small volume free fluid. => ascites
Peritoneum: No free fluid or air. =>
Lung nodules: LUL 4 mm, RLL 7 mm. => both pulmonary nodule
Nodules: 1. RUL 5 mm. 2. LLL 6 mm. => both pulmonary nodule
Pulmonary nodules: None. =>
Right lung: Clear. Left lung: Lower lobe atelectasis. => left atelectasis
""",
    "comparison": """
Interval increase in right pleural effusion. => right pleural effusion
Interval development of a small left pneumothorax. => left pneumothorax
Previously seen right lower lobe consolidation has improved. => right consolidation
The nodule in the right lower lobe has increased from 6 mm to 9 mm. => right pulmonary nodule
No interval change in the 5 mm right middle lobe nodule. => right pulmonary nodule
Unchanged appearance of bilateral renal cysts. => both renal cyst
Near complete resolution of the left pleural effusion. => left pleural effusion
Almost complete resolution of right lower lobe consolidation. => right consolidation
Decreased bilateral effusions, now trace. => both pleural effusion
Previously noted gallstones are again seen. => gallstones
Right effusion greater than left. => both pleural effusion
Bilateral effusions, larger on the right. => both pleural effusion
Small right effusion, trace left. => both pleural effusion
Small effusion on the right and trace on the left. => both pleural effusion
Moderate hydronephrosis on the left, mild on the right. => both hydronephrosis
Pleural effusion on the right, but not on the left. => right pleural effusion
No left hydronephrosis. Right side mildly hydronephrotic. => right hydronephrosis
""",
    "denial and doubt": """
No obvious pneumothorax is identified. =>
No convincing evidence of pneumonia. =>
No focal air-space opacity, effusion, or pneumothorax. =>
Opacity in the right base, atelectasis versus pneumonia. => right atelectasis, right consolidation
Right basal opacity favoured to represent atelectasis rather than consolidation. => right atelectasis
Atelectasis is favored over consolidation in the left lower lobe. => left atelectasis
Probable small left pleural effusion. => left pleural effusion
No renal or ureteric calculi. No hydronephrosis or hydroureter. =>
No radiopaque gallstones. =>
No suspicious osseous lesions. =>
No lytic or blastic osseous lesion. =>
No aggressive osseous lesion. Chronic L1 compression deformity. => vertebral fracture
Pleural effusion not seen on either side. =>
Lungs are clear of consolidation. =>
No consolidation. No effusion. No pneumothorax. No nodules. =>
No nodule greater than 4 mm. =>
No acute findings; incidental 4 mm left lower pole renal stone. => left renal stone
""",
    "trauma": """
Small right hemopneumothorax with adjacent pulmonary contusion. => right pleural effusion, right pneumothorax
Nondisplaced fractures of the right 5th-7th ribs. No pneumothorax. =>
Grade 3 splenic laceration with moderate hemoperitoneum. =>
No thoracic or lumbar spine fracture. =>
Acute fracture of the C6 spinous process. =>
Chance fracture at T12. => vertebral fracture
Left acetabular fracture. =>
No traumatic injury. No free intraperitoneal fluid. =>
""",
    "oncology": """
Multiple bilateral pulmonary metastases. => both pulmonary nodule
Pulmonary metastases in both lungs have progressed. => both pulmonary nodule
Target lesion 1: left lower lobe nodule, 12 mm. => left pulmonary nodule
Target lesion 2: Segment 7 liver lesion, 22 mm (previously 30 mm). => liver lesion
No evidence of thoracic or abdominal metastases. =>
Widespread bone metastases, unchanged. Liver metastases smaller. => bone metastasis, liver lesion
Status post left lower lobectomy. Small left effusion. => left pleural effusion
Malignant left pleural effusion. => left pleural effusion
Metastatic lesions in the liver and bones. => bone metastasis, liver lesion
Metastases to the liver and lungs. => liver lesion, pulmonary nodule
Peritoneal carcinomatosis with large ascites. => ascites
""",
    "after surgery": """
Postsurgical changes from left inguinal hernia repair. =>
Prior left inguinal hernia repair with mesh. Small right inguinal hernia. => right inguinal hernia
Bilateral inguinal hernia repairs. =>
Hiatal hernia repair changes. =>
Post thoracentesis, no pneumothorax; residual small right effusion. => right pleural effusion
Aortic aneurysm repair, without endoleak. =>
Post CABG, heart size normal. =>
Kyphoplasty at L1 for compression fracture. => vertebral fracture
""",
    "organs and sides": """
Both kidneys show cysts; the right kidney also contains a 3 mm stone. => both renal cyst, right renal stone
Cysts in the liver and right kidney. => hepatic cyst, right renal cyst
Stones in the gallbladder and left kidney. => gallstones, left renal stone
Cyst at the upper pole of the left kidney, Bosniak II. => left renal cyst
Exophytic cyst off the left kidney. => left renal cyst
Left parapelvic cysts. => left renal cyst
Bilateral parapelvic cysts, no hydronephrosis. => both renal cyst
Pancreatic cyst and left renal cyst. => left renal cyst
Right hip effusion. =>
Left lung base atelectasis, right lung base consolidation. => left atelectasis, right consolidation
Multifocal pneumonia involving the right upper lobe and left lower lobe. => both consolidation
Atelectasis of the left lower lobe due to a large effusion. => left atelectasis, left pleural effusion
Left lower lobe atelectasis due to pleural effusion. => left atelectasis, left pleural effusion
Small fat-containing right inguinal and umbilical hernias. => right inguinal hernia
Indirect inguinal hernia on the left containing sigmoid colon. => left inguinal hernia
Left obstructing ureteral stone with moderate hydronephrosis. => left hydronephrosis
7 mm stone at the left ureteropelvic junction with hydronephrosis. => left hydronephrosis
Obstructing 5 mm left UPJ stone with moderate hydronephrosis. => left hydronephrosis
4 mm calculus at the right UVJ. =>
Nonobstructing calculi bilaterally, largest 4 mm on the left. =>
Right hydroureteronephrosis to the level of a 5 mm ureterovesical junction stone. => right hydronephrosis
Bladder calculus. Left renal calculus. => left renal stone
The cardiac silhouette is mildly enlarged. => cardiomegaly
The heart appears enlarged. => cardiomegaly
Enlarged heart with coronary artery and aortic valve calcifications. => cardiomegaly, coronary artery calcification
Coronary artery calcifications are present in the LAD and RCA. => coronary artery calcification
Calcified coronaries. => coronary artery calcification
LAD and RCA calcifications. => coronary artery calcification
Atherosclerosis of the coronary arteries. => coronary artery calcification
Diffuse low attenuation of the liver, consistent with fatty infiltration. => hepatic steatosis
Hepatic fatty change. => hepatic steatosis
Fatty replaced pancreas. =>
Diffuse fatty replacement of the liver. => hepatic steatosis
COPD changes with paraseptal emphysema. => emphysema
Emphysematous cholecystitis. =>
Emphysematous pyelonephritis of the left kidney. =>
""",
    "what only looks alike": """
Spleen: Enlarged lymph nodes at the hilum. =>
Liver: Enlarged. Spleen: Normal. =>
Heart: Enlarged left atrium. =>
Heart: Normal size. Aorta: dilated. =>
Small bowel is dilated without evidence of obstruction. =>
Dilated loops of small bowel, no obstruction. =>
Gallbladder is collapsed. =>
Bladder: Collapsed. =>
The stomach is collapsed. The colon is collapsed. =>
Dynamic airway collapse. =>
Collapsed left lower lobe. => left atelectasis
No collapse or consolidation. =>
No lobar collapse. =>
Complete collapse of the left lung with a massive effusion. => left atelectasis, left pleural effusion
Collapsed right lung due to a large pneumothorax. => right atelectasis, right pneumothorax
Disc height loss at L4-L5. =>
Loss of disc height at L5-S1. =>
Compression of the L5 nerve root. =>
Severe spinal canal compression at L4. =>
Mild loss of height of the T9 and T10 vertebral bodies. => vertebral fracture
No vertebral body height loss. =>
T5 vertebral body height loss of 20%. => vertebral fracture
Cyst in the liver, kidneys are normal. => hepatic cyst
There is a cyst in the liver and the kidneys are unremarkable. => hepatic cyst
A lesion is seen in the liver and the spleen is normal. => liver lesion
Stone in the gallbladder and right kidney normal. => gallstones
No lesions in the liver or spleen. =>
No stones in the gallbladder or kidneys. =>
Mass in the left lung and the liver. => left pulmonary nodule, liver lesion
Metastases in the brain, liver, and bones. => bone metastasis, liver lesion
Cysts in the pancreas and left kidney. => left renal cyst
Left kidney: 2 cm cyst. Small right. => left renal cyst
Left kidney is smaller than right. =>
Left kidney larger than right. Left renal cyst. => left renal cyst
The left renal cyst is larger than the right. => both renal cyst
Left lower lobe nodule is larger than the right upper lobe nodule. => both pulmonary nodule
Right inguinal hernia larger than left. => both inguinal hernia
Left pleural effusion is larger than on the prior. => left pleural effusion
Right pneumothorax, larger than before. => right pneumothorax
No pleural effusion on the left, trace on the right. => right pleural effusion
Small left effusion, none on the right. => left pleural effusion
Right renal stones, left none. => right renal stone
Right kidney: No hydronephrosis. Left kidney: Small. =>
Right kidney: No hydronephrosis. Left kidney: Mild. => left hydronephrosis
Pleural effusions: Right small, left moderate. => both pleural effusion
Nodules: RUL 3 mm (image 22), LLL 4 mm (image 80). => both pulmonary nodule
Drained 2 L from the right pleural effusion. => right pleural effusion
L4 compression fracture; mild L spine degeneration. => vertebral fracture
R/O pneumothorax. =>
Post RT changes in the left lung with volume loss. => left atelectasis
RT kidney: 5 mm stone. LT kidney: cyst. => left renal cyst, right renal stone
SMALL L PLEURAL EFFUSION. NO PTX. => left pleural effusion
R LL nodule 5 mm. => right pulmonary nodule
Stone in the L. No hydro. =>
Effusion on the R. No PTX. => right pleural effusion
Discussed with Dr. R. Smith. Small left effusion. => left pleural effusion
Aortic aneurysm status post endovascular repair, sac 5.2 cm, stable. => aortic aneurysm
Left inguinal hernia requiring repair. => left inguinal hernia
Recurrent left inguinal hernia after repair. => left inguinal hernia
No pneumothorax following drainage. =>
No pneumothorax after right lung biopsy. =>
No residual pneumothorax after chest tube removal; small left effusion. => left pleural effusion
No nodule after treatment. =>
No evidence of the following: pneumothorax, effusion, consolidation. =>
Following thoracentesis, the left effusion has resolved. =>
Favor pneumonia over atelectasis. => consolidation
Pneumonia favored over aspiration. => consolidation
Findings favor pneumonia. => consolidation
Over the interval, the left effusion has increased. => left pleural effusion
Normal coronary arteries and aortic calcification. =>
No coronary or aortic calcification. =>
No coronary artery calcification. =>
Coronary arteries: Minimal calcified plaque. => coronary artery calcification
Coronary arteries: Normal. =>
Coronary arteries: Stents in the LAD. =>
Mitral annular calcification. No coronary calcification. =>
Aortic atherosclerosis. Coronary arteries are normal. =>
Associated atelectasis. => atelectasis
Left pleural effusion. Adjacent compressive atelectasis. => left atelectasis, left pleural effusion
No right pleural effusion. Associated atelectasis at the left base. => left atelectasis
Right upper lobe mass. Associated pleural effusion. => right pleural effusion, right pulmonary nodule
Left ureteral stent. Bilateral renal stones. => both renal stone
Left ureteral stent in place; right renal stone. => right renal stone
Left ureter is normal. Right renal cyst. => right renal cyst
Left ureteral stent with no hydronephrosis. =>
3 mm left ureteral calculus without hydronephrosis. =>
The spleen measures 12 cm, not enlarged. =>
The spleen measures 12 cm. No enlarged lymph nodes. =>
The spleen is normal in size and the heart is enlarged. => cardiomegaly
Liver and spleen: Enlarged. => splenomegaly
Liver is normal, not fatty. =>
The liver is not fatty. =>
Partial resolution of right pneumothorax. => right pneumothorax
Partial clearing of left lower lobe consolidation. => left consolidation
Near-complete clearing of right basilar atelectasis. => right atelectasis
Completely resolved left pneumothorax. =>
The left kidney is smaller than the right. No hydronephrosis on either side. =>
Stable postoperative appearance following left nephrectomy. No right renal lesion. =>
Comparison to prior: no new nodule, mass or effusion. =>
No pneumothorax or effusion following right thoracentesis. =>
No acute fracture following trauma. =>
No new lesion after chemotherapy. =>
The heart is normal in size. The aorta is not enlarged. =>
Heart: Normal in size. Great vessels: Dilated main pulmonary artery. =>
Pulmonary arteries: Enlarged, 3.4 cm. =>
Lymph nodes: Enlarged, up to 2 cm. =>
Liver: Enlarged, 19 cm. =>
Liver: Not enlarged. Spleen: 11 cm, not enlarged. =>
Prostate: Enlarged. =>
Thyroid: Enlarged with nodules. =>
Uterus: Enlarged with fibroids. Ovaries: left cyst. =>
Gallbladder: Distended. No stones. =>
Gallbladder: Collapsed, no stones. =>
Bile ducts: Dilated to 12 mm. =>
Ureters: Dilated on the left. =>
Small bowel: Dilated to 3.5 cm. =>
Colon: Collapsed. =>
Right lower lobe: Collapsed. => right atelectasis
Aorta: Aneurysmal, 5.0 cm. => aortic aneurysm
Aorta: Not aneurysmal. =>
Coronary arteries: Not calcified. =>
Coronary arteries: No significant calcification. =>
Coronary arteries: Calcified. => coronary artery calcification
No significant coronary or aortic atherosclerosis. =>
Normal caliber aorta with scattered calcifications; coronary arteries not well evaluated. =>
Calcified lymph nodes. Normal coronary arteries. =>
Airway: No collapse on expiratory images. =>
IVC is collapsed, suggesting hypovolemia. =>
Lungs: Clear. Trachea: No collapse. =>
The right lung is well expanded. No collapse. =>
Compression of the left renal vein. =>
Compression of the thecal sac at L4-L5. =>
Compression of the spinal cord at T8. =>
Extrinsic compression of the IVC. =>
Vertebral body height is maintained. Disc height loss at L5-S1. =>
Disc space height loss at L4-L5. =>
No height loss of the vertebral bodies. =>
Mass in the pancreas and spleen. =>
Cyst in the ovary and kidneys normal. =>
Stone in the bladder and kidneys are normal. =>
Nodule in the thyroid and lungs are clear. =>
No mass in the liver, pancreas, or left kidney. =>
Post RT fibrosis. No effusion. =>
Total of 2 L of ascites was removed. =>
Levels L 3 through L 5 are degenerated. =>
Vitamin L? Unremarkable. =>
L femoral line. R IJ line. No PTX. =>
R IJ catheter tip in SVC. Small L effusion. => left pleural effusion
Fx of the R 6th rib. No PTX. =>
Left effusion, right clear. => left pleural effusion
Left effusion; right side clear. => left pleural effusion
Left basilar atelectasis, right lung clear. => left atelectasis
Atelectasis at the left base; the right lung is clear. => left atelectasis
Left pleural effusion, no right. => left pleural effusion
Right lower lobe nodule. Left lung small. => right pulmonary nodule
Small left effusion and small right kidney. => left pleural effusion
Moderate effusion on the left and small right hilar nodes. => left pleural effusion
Left hydronephrosis and moderate right renal atrophy. => left hydronephrosis
Left inguinal hernia, small right hydrocele. => left inguinal hernia
Left renal cyst, one in the liver. => left renal cyst
Patient has one kidney on the left with a cyst. => left renal cyst
Left hernia mesh repaired previously; no recurrent inguinal hernia. =>
Unrepaired left inguinal hernia. => left inguinal hernia
Effusion drained by catheter: residual small left effusion. => left pleural effusion
The gallbladder was removed. Liver cyst. => hepatic cyst
Right kidney was removed. Left renal stone. => left renal stone
The tube has been removed. Small left pneumothorax. => left pneumothorax
Left chest tube was removed with small pneumothorax. => left pneumothorax
Pneumothorax after the chest tube was removed. => pneumothorax
Left pneumothorax is unchanged since the tube was removed. => left pneumothorax
Findings favor infection over malignancy in the right upper lobe nodule. => right pulmonary nodule
Increased over the interval left effusion. => left pleural effusion
Overlying the liver is a small right effusion. => right pleural effusion
Left renal mass. Associated hydronephrosis. => hydronephrosis
Nodules: None. Left lung: clear. =>
""",
    "said in other words": """
The left lower lobe is partially collapsed by a moderate effusion. => left atelectasis, left pleural effusion
Bilateral effusions are seen, moderate on the right and small on the left. => both pleural effusion
There is a moderate effusion on the right and a small one on the left. => both pleural effusion
Effusion on the right is moderate; that on the left is small. => both pleural effusion
Both a left effusion and a left pneumothorax are present. => left pleural effusion, left pneumothorax
The pneumothorax on the right is larger than on the previous CT. => right pneumothorax
Left lung is clear; right lung shows consolidation. => right consolidation
Left lung clear. Right lung with consolidation. => right consolidation
Neither lung shows consolidation. =>
Consolidation (RLL) and effusion (R). => right consolidation, right pleural effusion
A nodule (7 mm) is present in the LUL, another (4 mm) in the RLL. => both pulmonary nodule
A 7 mm nodule is present in the LUL and another in the RLL. => both pulmonary nodule
Two nodules: one in the RUL, one in the LLL. => both pulmonary nodule
Multiple pulmonary nodules as follows: LUL 5 mm; RML 7 mm. => both pulmonary nodule
Nodule, right upper lobe: 6 mm. => right pulmonary nodule
Right lower lobe: 6 mm nodule, previously 5 mm. => right pulmonary nodule
Nodules up to 4 mm in both lungs, unchanged. => both pulmonary nodule
No new nodules; previously seen nodules are stable. => pulmonary nodule
Previously seen nodules have resolved. =>
Stones: 3 mm left lower pole, 5 mm right interpolar. => both renal stone
Renal calculi: none. Renal cysts: left upper pole, 2 cm. => left renal cyst
Renal cysts: Bilateral. => both renal cyst
Renal cysts: Right only. => right renal cyst
Kidneys: R: 3 mm stone, L: mild hydro. => left hydronephrosis, right renal stone
Right kidney: hydronephrosis, moderate. Stone, 8 mm, lower pole. => right hydronephrosis, right renal stone
Right kidney: No stone. Hydronephrosis: mild. => right hydronephrosis
Right renal stone with mild hydronephrosis, left kidney normal. => right hydronephrosis, right renal stone
Mild fullness of the left collecting system without hydronephrosis. =>
The right renal collecting system is not dilated. =>
The ureters are not dilated and there is no hydronephrosis. =>
The kidneys demonstrate no hydronephrosis, but there is a stone in the left one. => left renal stone
Left hydronephrosis has improved, now mild, with stent in place. => left hydronephrosis
Cystic lesion of the left kidney, likely simple cyst. => left renal cyst
Polycystic kidneys with innumerable bilateral renal cysts. => both renal cyst
Cysts in the kidneys, bilaterally. => both renal cyst
Hepatic and renal cysts. => hepatic cyst, renal cyst
Simple cysts in the liver and kidneys. => hepatic cyst, renal cyst
No cysts in the liver; cysts in the left kidney. => left renal cyst
Liver is normal without cyst or mass; spleen is enlarged. => splenomegaly
Liver, spleen, pancreas, and adrenal glands are normal. Gallbladder has stones. => gallstones
Gallbladder demonstrates cholelithiasis without wall thickening or pericholecystic fluid. => gallstones
A stone is present at the gallbladder neck. => gallstones
Gallbladder sludge without stones. =>
Gallbladder: contains a 2 cm stone. => gallstones
Gallbladder: Contracted. Stones. => gallstones
Liver: Enlarged and fatty. => hepatic steatosis
Liver: Cirrhotic morphology. Fatty infiltration. No mass. => hepatic steatosis
Liver: Steatosis, mild. Cyst, segment 2, 1 cm. => hepatic cyst, hepatic steatosis
Liver: hypodensity in the right lobe, cyst. => hepatic cyst
Hypoattenuating hepatic lesion, probably a cyst. => hepatic cyst, liver lesion
Abdominal aorta: Atherosclerosis, no aneurysm. Coronaries: heavy calcification. => coronary artery calcification
Vascular: Aneurysm of the infrarenal aorta, 3.8 cm. => aortic aneurysm
Vessels: Saccular aneurysm arising from the aortic arch. => aortic aneurysm
Aorta is aneurysmal at 4.2 cm, unchanged. => aortic aneurysm
Aneurysmal dilatation of the ascending thoracic aorta, 4.4 cm. => aortic aneurysm
Aortic root aneurysm. => aortic aneurysm
No aneurysmal dilatation of the aorta. =>
Mild cardiac enlargement. Trace pericardial effusion. Coronary stents. => cardiomegaly, pericardial effusion
Pericardial effusion: small. Pleural effusion: trace bilateral. => both pleural effusion, pericardial effusion
Pleural effusion: bilateral, left greater than right. => both pleural effusion
Pleural effusions bilaterally, right larger. => both pleural effusion
Pneumothorax: small, right apical. => right pneumothorax
Pneumothorax: Negative. =>
Pneumothorax: Not present. =>
Emphysema: moderate; fibrosis: none. => emphysema
Fluid: small ascites. Air: none. => ascites
Free fluid: none. Free air: none. =>
Free fluid: Trace in the pelvis. => ascites
Hernia: small left inguinal. =>
Hernias: Small hiatal hernia; left inguinal hernia. => hiatal hernia, left inguinal hernia
Hiatal hernia: small. => hiatal hernia
Spine: L1 compression deformity, chronic. No acute fracture. => vertebral fracture
Fractures: none. Compression deformity: T11, mild. => vertebral fracture
Bones: Old fracture of L2. Metastasis in the sacrum. => bone metastasis, vertebral fracture
Known bone metastases in T5 and L2 are unchanged. => bone metastasis
No new bone metastasis. =>
Sclerosis of the left iliac bone. =>
Osseous metastases: present, diffuse. => bone metastasis
Pathologic compression fracture of T9 due to a lytic metastasis. => bone metastasis, vertebral fracture
Bowel obstruction: none. Bowel: Dilated loops suspicious for SBO. => bowel obstruction
Resolved small bowel obstruction. =>
Small bowel obstruction, improved from prior. => bowel obstruction
Early or partial small bowel obstruction is not excluded. => bowel obstruction
Follow up of left renal stones and gallstones. => gallstones, left renal stone
Patient known for left pleural effusion, which has resolved. =>
Since the prior study, a right pneumothorax has developed. => right pneumothorax
As compared to the prior study, there is a new left effusion. => left pleural effusion
Compared with 2020, no new nodules; the 6 mm right upper lobe nodule is unchanged. => right pulmonary nodule
A 6 mm right upper lobe nodule, seen on the prior study, is no longer present. =>
The 6 mm right upper lobe nodule seen previously has grown to 9 mm. => right pulmonary nodule
Lungs: Emphysema. No nodules, masses, or effusions. Left base scarring/atelectasis. => emphysema, left atelectasis
No consolidation to suggest pneumonia. =>
Lower lobe consolidation on the left with trace effusion. => left consolidation, left pleural effusion
Small right effusion. Left effusion has been drained. => right pleural effusion
""",
    "abbreviations and other plurals": """
Severe CAC. => coronary artery calcification
No CAC. =>
Bilateral fat containing inguinal herniae. => both inguinal hernia
Moderate hiatal hernia. No inguinal herniae. => hiatal hernia
CAC score 412. => coronary artery calcification
Calcium score: 0. =>
Mild LAD calcifications. => coronary artery calcification
Calcified plaque in the LAD and RCA. => coronary artery calcification
Bilateral renal cortical scarring. Left staghorn. =>
Lingular scarring/atelectasis. => left atelectasis
Discoid atelectasis RLL. => right atelectasis
Trace layering effusions, R>L. => both pleural effusion
Interval left thoracentesis with near resolution of effusion; no PTX. => left pleural effusion
Small bowel feces sign with dilated loops upstream, c/w SBO. => bowel obstruction
Partial SBO. => bowel obstruction
High-grade small bowel obstruction with transition point. => bowel obstruction
Findings compatible with ileus rather than obstruction. =>
Morgagni hernia. =>
Large paraesophageal hernia. => hiatal hernia
Large type III paraesophageal hiatal hernia. => hiatal hernia
Hepatic hemangioma segment 8, 2 cm. => liver lesion
Segment VI hypervascular lesion. => liver lesion
HCC in segment 5 measuring 3 cm. => liver lesion
Spleen upper limits of normal. =>
Borderline splenomegaly. => splenomegaly
Bone windows show diffuse blastic metastases. => bone metastasis
Compression fractures at T6, T9 and L2. => vertebral fracture
Kyphoplasty at L1. No new fracture. =>
Schmorl's nodes. =>
4.6 cm TAAA. => aortic aneurysm
Ascending aortic aneurysm, 5.1 cm. => aortic aneurysm
Aortic root dilated at 4.4 cm. =>
Iliac artery aneurysm. =>
Upper lobe paraseptal and centrilobular emphysema. => emphysema
Severe bullous emphysema with a giant bulla in the RUL. => emphysema
COPD. =>
Empyema on the right. =>
Right pleural thickening without effusion. =>
Complicated parapneumonic effusion on the right with loculations. => right pleural effusion
Multifocal pneumonia. => consolidation
Tree-in-bud nodularity in the RLL. =>
GGOs throughout both lungs. =>
Cavitary lesion in the RUL 3 cm. => right pulmonary nodule
Pulmonary metastases bilaterally. => both pulmonary nodule
LUL mass with postobstructive collapse. => left atelectasis, left pulmonary nodule
Vertebral hemangioma at T8. =>
Splenic hemangioma. =>
No paraesophageal hernia. =>
Paraesophageal varices. =>
Liver: two hemangiomas. => liver lesion
Calcified plaque of the LAD. => coronary artery calcification
LAD stent. =>
No LAD calcification. =>
No TAAA. =>
""",
    "translated": """
In the mediastinal window, the heart is enlarged, and pericardial effusion is not observed. => cardiomegaly
The spleen is enlarged, and ascites is not observed. => splenomegaly
Heart is not enlarged and pericardial effusion is seen. => pericardial effusion
Mild height loss in the anterior part of the L1 vertebral corpus. => vertebral fracture
Pneumothorax was not encountered. Pneumothorax is not distinguished. =>
Compressive atelectasis secondary to the effusion on the left. => left atelectasis, left pleural effusion
Grade 1-2 pelvicalyceal ectasia in the right kidney. => right hydronephrosis
Fat infiltration of the liver. => hepatic steatosis
Trace pelvic fluid. => ascites
Mild L1 superior endplate compression. => vertebral fracture
Lytic destruction of the right iliac bone. => bone metastasis
Bilateral parapelvic cysts mimicking hydronephrosis. => both renal cyst
Bilateral effusion was present in the previous examination, not detected in the current one. =>
Heart size increased. => cardiomegaly
Heart sizes are increased. => cardiomegaly
The cardiothoracic ratio is increased. => cardiomegaly
Heart dimensions are larger than normal. => cardiomegaly
Calcified changes observed in the wall of the thoracic aorta and of the coronaries. => coronary artery calcification
Calcifications are observed in the LAD. => coronary artery calcification
The ascending aorta is 45 mm in diameter and is aneurysmatic. => aortic aneurysm
In the right lung upper lobe anterior segment, a 7x5 mm nodule was observed. => right pulmonary nodule
In the left lung lower lobe, there is a 9 mm nodule and adjacent atelectasis. => left pulmonary nodule, left atelectasis
Pneumonic infiltration is observed in the left lower lobe. => left consolidation
Renal tract: 3 mm calculus in the lower pole calyx on the left. => left renal stone
Nodules in the upper lobes bilaterally. => both pulmonary nodule
Nodules in the right upper, right lower, and left upper lobes. => both pulmonary nodule
Moderate right and no left effusion. => right pleural effusion
Small right but no left pleural effusion. => right pleural effusion
An increase in heart size is observed. => cardiomegaly
Atelectatic changes accompanying the effusion on the right. => right atelectasis, right pleural effusion
There is a collapse-consolidation in the left lung lower lobe. => left atelectasis, left consolidation
Perihepatic and perisplenic effusion. =>
Hepatic metastatic disease, progressed. => liver lesion
Metastatic disease to the liver. => liver lesion
Left subdural effusion. =>
Moderate left and no right hydronephrosis. => left hydronephrosis
Left and not right renal stone. => left renal stone
Collapse and consolidation in the left lower lobe. => left atelectasis, left consolidation
Left effusion smaller; right effusion gone. => left pleural effusion
Heart size has not increased. Cardiothoracic ratio is normal. =>
Without increase in heart size. =>
Airway collapse. Consolidation in the left lower lobe. => left consolidation
Metastatic disease to lymph nodes. =>
Left kidney upper pole cyst and right kidney lower pole stone. => left renal cyst, right renal stone
Nodule in the upper lobe of the right lung and scarring on the left. => right pulmonary nodule
""",
    "denied, doubted and treated": """
Nodules are seen in neither lung. =>
Fails to show any pulmonary nodule. =>
The study fails to demonstrate hydronephrosis. =>
There isn't any pleural effusion. =>
There isn't a pneumothorax. =>
Nil pleural effusion. =>
Nil focal consolidation or collapse. =>
No adverse change in the hepatic cysts. => hepatic cyst
No rupture of the abdominal aortic aneurysm. => aortic aneurysm
No leak from the abdominal aortic aneurysm. => aortic aneurysm
No evidence of growth of the left lower lobe nodule. => left pulmonary nodule
Left effusion smaller; right effusion gone. => left pleural effusion
Hydronephrosis has subsided. =>
A left effusion, not seen previously, is small. => left pleural effusion
Low suspicion for bowel obstruction. =>
Low likelihood of pneumonia. =>
Low probability of pneumonia. =>
Correlate for pneumonia. =>
Clinical correlation for pneumonia is recommended. =>
Increased risk of pneumothorax. =>
Open repair of AAA. =>
Endograft repair of abdominal aortic aneurysm without endoleak. =>
Resected liver metastasis, no recurrence. =>
Resection of right upper lobe nodule; no recurrence. =>
Don't see a pneumothorax; small left effusion. => left pleural effusion
No extension of the left effusion. => left pleural effusion
No evidence of increased left effusion. => left pleural effusion
Emphysema: 0. =>
Lung nodules: No suspicious. =>
Fatty liver: no evidence. =>
Not seen previously: 5 mm nodule in the left lower lobe. => left pulmonary nodule
Partially resected mass in the right lung. => right pulmonary nodule
Low suspicion for malignancy, 4 mm nodule in the left lung. => left pulmonary nodule
No recurrence of the left pneumothorax. =>
No evidence of the previously seen left effusion. =>
No enlargement of the heart or spleen. =>
Nil of note, left effusion unchanged. => left pleural effusion
Status post mitral valve repair and cardiomegaly. => cardiomegaly
The effusion hasn't resolved on the left. => left pleural effusion
""",
    "written otherwise": """
Bilat. effusions with assoc. atelectasis. => both pleural effusion, both atelectasis
RT. EFFUSION. => right pleural effusion
L hydroneph. => left hydronephrosis
LLL PNA with parapneumonic effusion. => left consolidation, left pleural effusion
RML PNA. No effusion. => right consolidation
T7 VCF. => vertebral fracture
TAA 4.8 cm. => aortic aneurysm
Liver mets, bone mets. => liver lesion, bone metastasis
Osseous mets. => bone metastasis
Trace FF in pelvis. => ascites
Bilateral pleural effusons. => both pleural effusion
Right pneumothrax. => right pneumothorax
Right pnuemothorax. => right pneumothorax
Cardiomegally. => cardiomegaly
Emphysemetous changes. => emphysema
Emphesema. => emphysema
Bibasilar atelectatsis. => both atelectasis
Right middle lobe pnuemonia. => right consolidation
Splenomegally. => splenomegaly
Cholelithisis. => gallstones
Hydronephosis on the right. => right hydronephrosis
Asites. => ascites
Aortic aneurism. => aortic aneurysm
Pericardial effussion. => pericardial effusion
The following are not seen: gallstones, renal stones, hydronephrosis. =>
Ruled out: pneumothorax. =>
Ruled out: pneumothorax, effusion. =>
Absent: pneumothorax, effusion. =>
Negative: pneumothorax, effusion, fracture. =>
Pleural effusion? None. =>
Pleural effusion? Yes, bilateral. => both pleural effusion
Gallstones? Absent. =>
Hydronephrosis? No. Ascites? Yes. => ascites
Pneumothorax: [ ] Yes [x] No =>
[x] Gallstones [ ] Ascites => gallstones
[ ] Gallstones [x] Ascites => ascites
☐ Gallstones ☒ Ascites => ascites
Is there a pneumothorax? No. =>
Prior CT: left effusion. =>
Prior imaging report: right nodule. =>
Pneumothorax [ ] Effusion [ ] =>
Gallstones [x] Ascites [ ] => gallstones
Gallstones [ ] Ascites [x] => ascites
Pleural effusion: [x] Yes [ ] No. Pneumothorax: [ ] Yes [x] No. => pleural effusion
Mets to bone and liver. => bone metastasis, liver lesion
LT. EFFUSION. RT. LUNG CLEAR. => left pleural effusion
Resolved: effusion. New: left nodule. => left pulmonary nodule
Negative: PTX. Positive: right effusion. => right pleural effusion
Patient failed to hold breath; small left effusion. => left pleural effusion
Nodule measuring [ ] mm in the left lung. => left pulmonary nodule
Pneumonia? No effusion. => consolidation
S/P RT. LEFT EFFUSION. => left pleural effusion
Pneumonic, plurality, calculous. =>
No PNA, nodal mets or brain mets. =>
""",
}

REPORTS = [
    """EXAM: CT CHEST WITHOUT CONTRAST
HISTORY: 67-year-old with known emphysema and left effusion.
COMPARISON: CT chest 3/4/2021.
FINDINGS:
Lungs: 6 mm solid nodule in the right upper lobe (series 3, image 44), unchanged. New 4 mm nodule in the lingula.
Mild upper lobe predominant centrilobular emphysema.
Pleura: No effusion or pneumothorax.
Heart and mediastinum: Heart size is normal. Moderate coronary artery calcifications. No pericardial effusion.
Upper abdomen: Small hiatal hernia. Subcentimeter hypodensity in the left kidney, likely a cyst.
Bones: Chronic T8 compression deformity.
IMPRESSION:
1. New 4 mm lingular nodule.
2. Stable right upper lobe nodule.
3. Emphysema.
=> coronary artery calcification, emphysema, hiatal hernia, both pulmonary nodule, left renal cyst, vertebral
fracture""",
    """Clinical details: Abdominal pain. ?renal colic
Technique: Unenhanced CT KUB.
Findings: There is a 5 mm calculus at the left VUJ with moderate left hydronephrosis and hydroureter. Two further
non-obstructing calculi are present in the left kidney lower pole. Right kidney is normal. No right-sided calculi.
Incidental gallstones. Fatty liver. No free fluid.
Conclusion: Obstructing left VUJ calculus.
=> gallstones, hepatic steatosis, left hydronephrosis, left renal stone""",
    """CT ABDOMEN AND PELVIS WITH IV CONTRAST

INDICATION: Follow-up colon cancer, liver metastases.

LOWER CHEST: Trace right pleural effusion. Bibasilar atelectasis.
LIVER: Multiple hypoattenuating metastases, the largest in segment 8 measuring 3.1 cm, previously 4.0 cm.
GALLBLADDER: Surgically absent.
SPLEEN: Enlarged, measuring 14 cm.
PANCREAS: Normal.
ADRENALS: 1.2 cm left adrenal nodule, stable.
KIDNEYS: Simple cyst in the upper pole of the right kidney. No hydronephrosis.
BOWEL: Status post right hemicolectomy. No obstruction.
PERITONEUM: Small ascites.
VESSELS: Infrarenal aortic ectasia, 2.8 cm. No aneurysm.
BONES: No suspicious osseous lesion.

IMPRESSION:
1. Decreased hepatic metastases.
2. New small ascites.
=> ascites, both atelectasis, liver lesion, right pleural effusion, right renal cyst, splenomegaly""",
    """TRAUMA CT CHEST ABDOMEN PELVIS
CHEST: Small left pneumothorax. Left 4th through 8th rib fractures. Small left hemothorax. Left lower lobe
contusion. Right lung clear.
ABDOMEN: Liver, gallbladder, pancreas, and adrenals are intact. Splenic laceration. No free air. Moderate free
fluid.
SPINE: Compression fracture of T12. No cervical fracture.
IMPRESSION: Left pneumothorax and hemothorax with rib fractures. Splenic injury with hemoperitoneum. T12 fracture.
=> ascites, left pleural effusion, left pneumothorax, vertebral fracture""",
    """IMPRESSION:
1. No evidence of pulmonary embolism.
2. Right lower lobe pneumonia with small parapneumonic effusion.
3. Mild cardiomegaly with small pericardial effusion.
4. Cholelithiasis without evidence of cholecystitis.
5. 8 mm left lower lobe nodule; recommend follow-up CT in 6 months.
=> cardiomegaly, gallstones, left pulmonary nodule, pericardial effusion, right consolidation, right pleural
effusion""",
    """Post-operative CT chest. s/p left upper lobectomy for lung cancer.
Comparison: none.
Findings:
- Left chest tube in situ. Small residual left hydropneumothorax.
- Left lower lobe atelectasis.
- Right lung: clear, no nodule.
- No pericardial effusion.
- Subcutaneous emphysema in the left chest wall.
- Degenerative spine, no fracture.
=> left atelectasis, left pleural effusion, left pneumothorax""",
    """Report
Lungs and pleura: The lungs are well expanded without focal consolidation. There is no pleural effusion or
pneumothorax bilaterally.
Heart and vessels: The heart is not enlarged. Thoracic aorta is normal in calibre. No coronary calcification.
Liver and gallbladder: The liver is normal in size without focal lesion. No gallstones or biliary dilatation.
Kidneys: No stones, cysts or hydronephrosis.
Bones: No fracture.
Conclusion: Normal study.
=> """,
    """FINDINGS: Moderate left and small right pleural effusions, increased compared with the prior
examination. Associated compressive atelectasis. No pneumothorax. Cardiomegaly. Dense coronary calcifications and prior
CABG. Ascending aorta aneurysm measuring 4.6 cm. No pericardial effusion. Visualized upper abdomen: cirrhotic liver with
splenomegaly and moderate ascites. Gallstones. Age-indeterminate L2 compression fracture.
IMPRESSION: Volume overload with bilateral effusions.
=> aortic aneurysm, ascites, cardiomegaly, coronary artery calcification, gallstones, both atelectasis, both
pleural effusion, splenomegaly, vertebral fracture""",
    """CT KUB: Right kidney: 3 stones, largest 8 mm in the lower pole. No hydronephrosis. Left kidney: Mild
hydronephrosis due to 4 mm stone in the proximal left ureter. 3 cm cyst, mid pole. Bladder: unremarkable. Other: Small
bilateral fat-containing inguinal hernias. Sigmoid diverticulosis without diverticulitis. No free fluid.
=> left hydronephrosis, both inguinal hernia, left renal cyst, right renal stone""",
    """History: SOB
Findings:
Comparison is made to the prior study of 1/2/20. The previously seen right pneumothorax has resolved. The right
pleural effusion is smaller. There is persistent right lower lobe consolidation. The left lung is clear. The 5 mm
left apical nodule is unchanged. Prior sternotomy. Osseous structures are intact with old L1 compression fracture.
Impression:
Improving right effusion. Resolved right pneumothorax.
=> left pulmonary nodule, right consolidation, right pleural effusion, vertebral fracture""",
    """ABDOMEN: The liver demonstrates diffuse fatty infiltration. There is a 1.4 cm cyst in the left lobe of the liver.
The gallbladder is surgically absent. The spleen is enlarged, 14.2 cm. Pancreas and adrenal glands are unremarkable.
Kidneys: bilateral nonobstructing calculi, measuring up to 3 mm on the right and 5 mm on the left. The aorta is
normal in caliber. Small bowel obstruction is present with a transition point in the right lower quadrant. Small
amount of ascites.
PELVIS: Bladder is normal. Left inguinal hernia containing fat. No adenopathy.
BONES: No aggressive lesions.
=> ascites, bowel obstruction, hepatic cyst, hepatic steatosis, left inguinal hernia, both renal stone, splenomegaly""",
    """CT THORAX/ABDOMEN/PELVIS - Restaging
Clinical info: Breast ca. ?progression
Comparison: 12/03/2023
CHEST
No axillary adenopathy. Previously noted right upper lobe nodule has increased to 14 mm (was 9 mm). New 6 mm
nodule left lower lobe. Small right effusion, new. No left effusion.
ABDOMEN & PELVIS
Two new lesions in segments 5 and 7 of the liver, measuring 18 and 22 mm. GB, spleen, pancreas NAD. Kidneys:
simple cyst on the right. No hydronephrosis. No ascites.
BONES
New sclerotic lesion in L3. Stable T6 wedge fracture.
CONCLUSION: Disease progression with new hepatic, pulmonary and osseous metastases.
=> bone metastasis, both pulmonary nodule, liver lesion, right pleural effusion, right renal cyst, vertebral
fracture""",
    """FINDINGS:
LINES/TUBES: Right chest tube. Left PICC.
LUNGS/PLEURA: Trace right apical pneumothorax, decreased. Small L effusion, unchanged, with LLL atelectasis. RUL 5
mm nodule.
MEDIASTINUM: Heart is enlarged. Trace pericardial effusion.
UPPER ABDOMEN: Cholelithiasis. Liver is fatty. R renal cyst.
MSK: No fx.
IMPRESSION: Decreased R PTX. Unchanged L effusion.
=> cardiomegaly, gallstones, hepatic steatosis, left atelectasis, left pleural effusion, pericardial effusion,
right pneumothorax, right pulmonary nodule, right renal cyst""",
    """Indication: flank pain
Findings: LEFT: Moderate hydroureteronephrosis secondary to an 8 mm calculus at L3. RIGHT: No hydronephrosis. 3 mm
calculus in the lower pole. Gallbladder normal. Small hiatal hernia.
Impression: Left obstructive uropathy.
=> hiatal hernia, left hydronephrosis, right renal stone""",
    """Lungs: No nodules.
Pleura: Effusions bilaterally, moderate on the right and small on the left. No pneumothorax.
Heart: Normal in size.
Vessels: Extensive coronary calcification. AAA: 4.1 cm.
Liver: Normal. Gallbladder: Absent. Spleen: Normal.
Kidneys: Atrophic with cysts bilaterally.
GI: No obstruction.
Peritoneum: Moderate ascites.
Bones: L4 compression fracture, old.
=> aortic aneurysm, ascites, coronary artery calcification, both pleural effusion, both renal cyst, vertebral
fracture""",
]


def told(findings):
    keys = {" ".join(key.split()) for key in findings.split(",")} - {""}
    both = {key.removeprefix("both ") for key in keys if key.startswith("both ")}
    return {key for key in keys if not key.startswith("both ")} | {f"{side} {name}" for name in both for side in SIDES}


def cases(theme):
    return [(text, told(keys)) for text, keys in (line.split(" =>") for line in SENTENCES[theme].strip().split("\n"))]


@pytest.mark.parametrize("theme", SENTENCES)
def test_sentences_are_read_as_a_radiologist_reads_them(theme):
    assert {text: read for text, keys in cases(theme) if (read := finding_keys(text)) != keys} == {}


@pytest.mark.parametrize("theme", SENTENCES)
def test_the_mirrored_sentence_says_the_mirrored_findings(theme):
    other = {"left": "right", "right": "left"}
    for text, keys in cases(theme):
        mirrored = {" ".join(other.get(word, word) for word in key.split(" ")) for key in keys}
        assert finding_keys(swap_sides(text)) == mirrored, text
        assert swap_sides(swap_sides(text)).lower() == text.lower()


@pytest.mark.parametrize("report", REPORTS)
def test_whole_reports(report):
    text, findings = report.split("\n=>")
    assert finding_keys(text) == told(findings)


LISTS = [
    ("Nodules: RUL 3 mm (image 22), LLL 4 mm (image 80).", "both pulmonary nodule"),
    ("Nodules:\n- RUL, 5 mm\n- Lingula, 4 mm\n- No new nodules", "both pulmonary nodule"),
    ("Pleural effusions:\n- Right: small\n- Left: moderate", "both pleural effusion"),
    ("Pleural effusion:\n- Right: small\n- Left: none\nHeart: normal.", "right pleural effusion"),
    ("Pleural effusion: none.\nLeft: 3 mm nodule.", "left pulmonary nodule"),
    ("KIDNEYS: Hydronephrosis: none. Left kidney: small.", ""),
    ("Renal stones: none.\nRight kidney 10 cm.\nLeft kidney 11 cm.", ""),
    ("Left inguinal hernia. Associated atelectasis.", "atelectasis, left inguinal hernia"),
    ("Left pneumothorax. Associated atelectasis.", "left atelectasis, left pneumothorax"),
    ("Left pneumothorax. Pleural effusion.", "left pneumothorax, pleural effusion"),
    ("Nodules: stable.\nLeft lower lobe, 5 mm.", "pulmonary nodule"),
    ("Small left pleural effusion.\nKIDNEYS: Small on the right.", "left pleural effusion"),
]


@pytest.mark.parametrize(("text", "findings"), LISTS)
def test_what_a_header_or_the_sentence_before_lends(text, findings):
    assert finding_keys(text) == told(findings)


def test_each_item_of_a_list_has_its_own_size_and_is_one():
    rows = [(f.key, f.site, f.size_mm, f.count) for f in parse_findings("Nodules:\n1. RUL 5 mm.\n2. LLL 6 mm.")]
    assert rows == [
        ("left pulmonary nodule", "lower lobe", 6.0, 1),
        ("right pulmonary nodule", "upper lobe", 5.0, 1),
    ]
    sizes = [(f.key, f.size_mm) for f in parse_findings("Nodules: right upper lobe 5 mm, left lower lobe 6 mm.")]
    assert sizes == [("left pulmonary nodule", 6.0), ("right pulmonary nodule", 5.0)]
    two = parse_findings("Nodules, for example 5 mm in the left upper lobe and 7 mm in the right lower lobe.")
    assert [(f.key, f.size_mm) for f in two] == [("left pulmonary nodule", 5.0), ("right pulmonary nodule", 7.0)]
    two = parse_findings("Stones: 3 mm left lower pole, 5 mm right interpolar.")
    assert [(f.key, f.size_mm) for f in two] == [("left renal stone", 3.0), ("right renal stone", 5.0)]
    (nodule,) = parse_findings("Consolidation in the right upper lobe, 5 mm nodule in the left lower lobe.")[:1]
    assert (nodule.key, nodule.size_mm) == ("left pulmonary nodule", 5.0)


def test_one_calculus_is_one():
    assert parse_findings("Right renal calculus 6 mm.") == [Finding("renal stone", "right", None, 6.0, 1)]


def test_a_size_does_not_hide_that_the_organ_is_enlarged():
    for text in (
        "Spleen: Enlarged, measuring 15.2 cm.",
        "Spleen: 15.2 cm, enlarged.",
        "Spleen measures 15.2 cm, enlarged.",
    ):
        assert parse_findings(text) == [Finding("splenomegaly", size_mm=152.0)]


def test_what_is_left_out_is_denied_or_graded_on_its_own_side():
    assert finding_labels("Left renal stones; none on the right.") == {"left renal stone": 1, "right renal stone": 0}
    moderate, mild = parse_findings("Moderate hydronephrosis on the left, mild on the right.")
    assert (moderate.key, moderate.severity) == ("left hydronephrosis", "moderate")
    assert (mild.key, mild.severity) == ("right hydronephrosis", "mild")


def test_a_repaired_hernia_is_of_the_past():
    assert [m.status for m in parse_mentions("Right inguinal hernia repair.")] == ["historical"]


def test_shorthand_is_written_out_and_other_letters_stay():
    assert (
        written_out("Mod. R hydro w/ L-sided b/l fx.")
        == "moderate right hydronephrosis with left-sided bilateral fracture."
    )
    for text in ("2 L drained", "L4 and L 5", "L spine", "R/O PTX", "R. Smith", "post RT change", "RTA", "s/p", "w/o"):
        assert written_out(text) == text


def test_boxes_are_ticks_only_where_one_is_ticked_or_opens_the_line():
    assert written_out("[ ] PTX") == "; no  PTX"
    assert written_out("Nodule of [ ] mm") == "Nodule of [ ] mm"


def test_slips_are_mended_and_other_words_stay():
    assert respelt("pnuemothorax, effussions, emphesema") == "pneumothorax, effusions, emphysema"
    for word in ("pneumonic", "stenosis", "empyema", "perineal", "calculous", "lesional", "hernial", "inguinally"):
        assert respelt(word) == word
