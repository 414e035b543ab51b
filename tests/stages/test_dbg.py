import torch
from lightning import Callback, seed_everything
from cxr_lightning.data.datamodule import CheXpertDataModule
from cxr_lightning.stages.finetune import Finetune

class Note(Callback):
    def __init__(self): self.seen=[]
    def on_train_batch_start(self, trainer, pl, batch, i): self.seen.append((trainer.global_step, i, batch.index.tolist(), torch.initial_seed()%10000))

def test_x(products, prepared, quiet_trainer, tmp_path):
    def make(): return Finetune(products/"generator", products/"encoder", image_size=32)
    def data(): return CheXpertDataModule(prepared, batch_size=4, image_size=32)
    n=[Note() for _ in range(3)]
    a,b,c=make(),make(),make()
    t=quiet_trainer(max_steps=2, limit_val_batches=0, callbacks=[n[0]]); t.fit(a, datamodule=data()); t.save_checkpoint(tmp_path/"x.ckpt")
    ck=torch.load(tmp_path/"x.ckpt", weights_only=False)
    print(ck["loops"]["fit_loop"])
    quiet_trainer(max_steps=4, limit_val_batches=0, callbacks=[n[1]]).fit(b, datamodule=data(), ckpt_path=tmp_path/"x.ckpt", weights_only=False)
    quiet_trainer(max_steps=4, limit_val_batches=0, callbacks=[n[2]]).fit(c, datamodule=data())
    for x in n: print(*x.seen, sep="\n"); print()
    A,B=b.state_dict(),c.state_dict()
    print({k:(A[k]-B[k]).abs().max().item() for k in A if not torch.equal(A[k],B[k])})
    assert 0
