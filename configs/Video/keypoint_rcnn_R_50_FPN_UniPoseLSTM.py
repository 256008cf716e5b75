from mrcnn_ext.modeling import UniPoseLSTMKeypointHead

from .keypoint_rcnn_R_50_FPN_ConvLSTM import dataloader, lr_multiplier, model, optimizer, train

model.roi_heads.keypoint_head._target_ = UniPoseLSTMKeypointHead
model.roi_heads.keypoint_head.update(conv_dims=[512] * 4, wasp_rates=[1, 2, 4])
