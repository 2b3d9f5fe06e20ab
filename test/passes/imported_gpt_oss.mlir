// RUN: moeloom-opt %s -p "moe-raise-torch,canonicalize,moe-plan-experts,moe-fuse-quant-sort" 2>%t.err | filecheck %s --check-prefix=TWO
// RUN: filecheck %s --check-prefix=REPORT --input-file %t.err
// RUN: moeloom-opt %s -p "moe-raise-torch,canonicalize,moe-plan-experts{stages=1},moe-fuse-quant-sort" | filecheck %s --check-prefix=ONE
// What moeloom.torch_import makes of transformers' GptOssForCausalLM (one layer, H = I = 64, E = 4, k = 2).

// TWO-LABEL: func.func @moe_block_0(
// TWO:         "moe.route"
// TWO:         "moe.sort_tokens"
// TWO-NEXT:    "moe.quant_sort"{{.*}}stage = 1
// TWO-NEXT:    "moe.gate_up"
// TWO-NEXT:    "moe.quant_sort"{{.*}}stage = 2
// TWO-NEXT:    "moe.down"
// TWO-NEXT:    "moe.combine"
// TWO-LABEL: func.func @moe_block_0.experts(
// TWO-NEXT:    "moe.sort_tokens"
// TWO-NEXT:    "moe.quant_sort"{{.*}}stage = 1
// TWO-LABEL: func.func @moe_block_0.experts_prequantised(
// TWO-NEXT:    "moe.sort_tokens"
// TWO-NEXT:    "moe.sort_scales"(%arg1
// TWO-NEXT:    "moe.gate_up"(%arg0
// TWO-NEXT:    "moe.quant_sort"{{.*}}stage = 2
// ONE-LABEL: func.func @moe_block_0(
// ONE:         "moe.sort_tokens"
// ONE-NEXT:    "moe.quant_sort"{{.*}}stage = 1
// ONE-NEXT:    "moe.experts_one_stage"
// ONE-NEXT:    "moe.combine"
// ONE-LABEL: func.func @moe_block_0.experts_prequantised(
// ONE-NEXT:    "moe.sort_tokens"
// ONE-NEXT:    "moe.sort_scales"(%arg1
// ONE-NEXT:    "moe.experts_one_stage"(%arg0
// REPORT: remark: fused: stage 1 of @moe_block_0:
// REPORT: remark: fused: stage 2 of @moe_block_0:
// REPORT: remark: fused: stage 1 of @moe_block_0.experts:
// REPORT: remark: fused: stage 2 of @moe_block_0.experts:
// REPORT: remark: refused: stage 1 of @moe_block_0.experts_prequantised: scales come from elsewhere (pre-quantised input)
// REPORT: remark: fused: stage 2 of @moe_block_0.experts_prequantised:
module {
  func.func @moe_block_0(%arg0: !torch.vtensor<[?,64],bf16> {moe.input = "x"}, %arg1: !torch.vtensor<[1],si32> {moe.input = "num_tokens"}, %arg2: !torch.vtensor<[4,64],bf16> {moe.weight = "router.weight"}, %arg3: !torch.vtensor<[4],bf16> {moe.weight = "router.bias"}, %arg4: !torch.vtensor<[4,128,2,16],ui8> {moe.weight = "experts.gate_up_proj_blocks"}, %arg5: !torch.vtensor<[4,128,2],ui8> {moe.weight = "experts.gate_up_proj_scales"}, %arg6: !torch.vtensor<[4,128],bf16> {moe.weight = "experts.gate_up_proj_bias"}, %arg7: !torch.vtensor<[4,64,2,16],ui8> {moe.weight = "experts.down_proj_blocks"}, %arg8: !torch.vtensor<[4,64,2],ui8> {moe.weight = "experts.down_proj_scales"}, %arg9: !torch.vtensor<[4,64],bf16> {moe.weight = "experts.down_proj_bias"}) -> !torch.vtensor<[?,64],bf16> attributes {torch.assume_strict_symbolic_shapes} {
    %0 = torch.aten.linear %arg0, %arg2, %arg3 : !torch.vtensor<[?,64],bf16>, !torch.vtensor<[4,64],bf16>, !torch.vtensor<[4],bf16> -> !torch.vtensor<[?,4],bf16>
    %none = torch.constant.none
    %int2 = torch.constant.int 2
    %str = torch.constant.str "softmax_after_topk"
    %false = torch.constant.bool false
    %float1.000000e00 = torch.constant.float 1.000000e+00
    %int1 = torch.constant.int 1
    %int1_0 = torch.constant.int 1
    %1:2 = torch.operator "torch.moe.route"(%0, %none, %arg1, %int2, %str, %false, %float1.000000e00, %int1, %int1_0) : (!torch.vtensor<[?,4],bf16>, !torch.none, !torch.vtensor<[1],si32>, !torch.int, !torch.str, !torch.bool, !torch.float, !torch.int, !torch.int) -> (!torch.vtensor<[?,2],f32>, !torch.vtensor<[?,2],si32>) 
    %none_1 = torch.constant.none
    %int15 = torch.constant.int 15
    %str_2 = torch.constant.str "swiglu"
    %float1.702000e00 = torch.constant.float 1.702000e+00
    %float7.000000e00 = torch.constant.float 7.000000e+00
    %str_3 = torch.constant.str "interleaved"
    %str_4 = torch.constant.str "nk"
    %2 = torch.operator "torch.moe.experts"(%arg0, %none_1, %1#1, %1#0, %arg4, %arg5, %arg6, %arg7, %arg8, %arg9, %int15, %str_2, %float1.702000e00, %float7.000000e00, %str_3, %str_4) : (!torch.vtensor<[?,64],bf16>, !torch.none, !torch.vtensor<[?,2],si32>, !torch.vtensor<[?,2],f32>, !torch.vtensor<[4,128,2,16],ui8>, !torch.vtensor<[4,128,2],ui8>, !torch.vtensor<[4,128],bf16>, !torch.vtensor<[4,64,2,16],ui8>, !torch.vtensor<[4,64,2],ui8>, !torch.vtensor<[4,64],bf16>, !torch.int, !torch.str, !torch.float, !torch.float, !torch.str, !torch.str) -> !torch.vtensor<[?,64],bf16> 
    return %2 : !torch.vtensor<[?,64],bf16>
  }
  func.func @moe_block_0.experts(%arg0: !torch.vtensor<[?,64],bf16> {moe.input = "x"}, %arg1: !torch.vtensor<[?,2],si32> {moe.input = "ids"}, %arg2: !torch.vtensor<[?,2],f32> {moe.input = "weights"}, %arg3: !torch.vtensor<[4,128,2,16],ui8> {moe.weight = "experts.gate_up_proj_blocks"}, %arg4: !torch.vtensor<[4,128,2],ui8> {moe.weight = "experts.gate_up_proj_scales"}, %arg5: !torch.vtensor<[4,128],bf16> {moe.weight = "experts.gate_up_proj_bias"}, %arg6: !torch.vtensor<[4,64,2,16],ui8> {moe.weight = "experts.down_proj_blocks"}, %arg7: !torch.vtensor<[4,64,2],ui8> {moe.weight = "experts.down_proj_scales"}, %arg8: !torch.vtensor<[4,64],bf16> {moe.weight = "experts.down_proj_bias"}) -> !torch.vtensor<[?,64],bf16> attributes {torch.assume_strict_symbolic_shapes} {
    %none = torch.constant.none
    %int15 = torch.constant.int 15
    %str = torch.constant.str "swiglu"
    %float1.702000e00 = torch.constant.float 1.702000e+00
    %float7.000000e00 = torch.constant.float 7.000000e+00
    %str_0 = torch.constant.str "interleaved"
    %str_1 = torch.constant.str "nk"
    %0 = torch.operator "torch.moe.experts"(%arg0, %none, %arg1, %arg2, %arg3, %arg4, %arg5, %arg6, %arg7, %arg8, %int15, %str, %float1.702000e00, %float7.000000e00, %str_0, %str_1) : (!torch.vtensor<[?,64],bf16>, !torch.none, !torch.vtensor<[?,2],si32>, !torch.vtensor<[?,2],f32>, !torch.vtensor<[4,128,2,16],ui8>, !torch.vtensor<[4,128,2],ui8>, !torch.vtensor<[4,128],bf16>, !torch.vtensor<[4,64,2,16],ui8>, !torch.vtensor<[4,64,2],ui8>, !torch.vtensor<[4,64],bf16>, !torch.int, !torch.str, !torch.float, !torch.float, !torch.str, !torch.str) -> !torch.vtensor<[?,64],bf16> 
    return %0 : !torch.vtensor<[?,64],bf16>
  }
  func.func @moe_block_0.experts_prequantised(%arg0: !torch.vtensor<[?,32],ui8> {moe.input = "payload"}, %arg1: !torch.vtensor<[?,2],ui8> {moe.input = "scales"}, %arg2: !torch.vtensor<[?,2],si32> {moe.input = "ids"}, %arg3: !torch.vtensor<[?,2],f32> {moe.input = "weights"}, %arg4: !torch.vtensor<[4,128,2,16],ui8> {moe.weight = "experts.gate_up_proj_blocks"}, %arg5: !torch.vtensor<[4,128,2],ui8> {moe.weight = "experts.gate_up_proj_scales"}, %arg6: !torch.vtensor<[4,128],bf16> {moe.weight = "experts.gate_up_proj_bias"}, %arg7: !torch.vtensor<[4,64,2,16],ui8> {moe.weight = "experts.down_proj_blocks"}, %arg8: !torch.vtensor<[4,64,2],ui8> {moe.weight = "experts.down_proj_scales"}, %arg9: !torch.vtensor<[4,64],bf16> {moe.weight = "experts.down_proj_bias"}) -> !torch.vtensor<[?,64],bf16> attributes {torch.assume_strict_symbolic_shapes} {
    %int15 = torch.constant.int 15
    %str = torch.constant.str "swiglu"
    %float1.702000e00 = torch.constant.float 1.702000e+00
    %float7.000000e00 = torch.constant.float 7.000000e+00
    %str_0 = torch.constant.str "interleaved"
    %str_1 = torch.constant.str "nk"
    %0 = torch.operator "torch.moe.experts"(%arg0, %arg1, %arg2, %arg3, %arg4, %arg5, %arg6, %arg7, %arg8, %arg9, %int15, %str, %float1.702000e00, %float7.000000e00, %str_0, %str_1) : (!torch.vtensor<[?,32],ui8>, !torch.vtensor<[?,2],ui8>, !torch.vtensor<[?,2],si32>, !torch.vtensor<[?,2],f32>, !torch.vtensor<[4,128,2,16],ui8>, !torch.vtensor<[4,128,2],ui8>, !torch.vtensor<[4,128],bf16>, !torch.vtensor<[4,64,2,16],ui8>, !torch.vtensor<[4,64,2],ui8>, !torch.vtensor<[4,64],bf16>, !torch.int, !torch.str, !torch.float, !torch.float, !torch.str, !torch.str) -> !torch.vtensor<[?,64],bf16> 
    return %0 : !torch.vtensor<[?,64],bf16>
  }
  "moe.entry"() {entry = "model.layers.0.mlp", prefix = "model.layers.0.mlp.", program = @moe_block_0} : () -> ()
  "moe.entry"() {entry = "model.layers.0.mlp.experts", prefix = "model.layers.0.mlp.", program = @moe_block_0.experts} : () -> ()
  "moe.entry"() {entry = "model.layers.0.mlp.experts_prequantised", prefix = "model.layers.0.mlp.", program = @moe_block_0.experts_prequantised} : () -> ()
}
