// RUN: not moeloom-opt %s -p moe-fuse-quant-srt 2>&1 | filecheck %s
// CHECK: Error: there is no pass 'moe-fuse-quant-srt'; did you mean moe-fuse-quant-sort?
// RUN: moeloom-opt --list-passes | filecheck %s --check-prefix=LIST
// LIST: moe-fuse-quant-sort
// LIST: moe-lower-to-kernels{target=cpu
// LIST: moe-plan-experts{stages=2 activations=mxfp4 scale_mode=even block=32 layout=tiled_32x8 routing_weight_stage=2 decode=none}
// LIST: moe-quantize-weights{format=mxfp4 scale_mode=even}
