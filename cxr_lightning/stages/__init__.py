"""The four training stages, one LightningModule each."""
