// RUN: moeloom-opt %s -p moe-raise-torch --split-input-file | filecheck %s
// RUN: moeloom-opt %s -p moe-raise-torch,moe-raise-torch --split-input-file | filecheck %s

// Constants become attributes, arguments builtin tensors; the router's product stays torch's, between casts.
// CHECK-LABEL: func.func @routes(
// CHECK-SAME: %[[X:.*]]: tensor<?x64xbf16> {moe.input = "x"}, %[[N:.*]]: tensor<1xi32>, %[[W:.*]]: tensor<8x64xbf16>)
// CHECK-SAME: -> (tensor<?x2xf32>, tensor<?x2xi32>)
// CHECK-NEXT: %[[TX:.*]] = torch_c.from_builtin_tensor %[[X]]
// CHECK-NEXT: %[[TW:.*]] = torch_c.from_builtin_tensor %[[W]]
// CHECK-NEXT: %[[NONE:.*]] = torch.constant.none
// CHECK-NEXT: %[[PRODUCT:.*]] = torch.aten.linear %[[TX]], %[[TW]], %[[NONE]]
// CHECK-NEXT: %[[LOGITS:.*]] = torch_c.to_builtin_tensor %[[PRODUCT]]
// CHECK-NEXT: %[[ROUTE:.*]]:2 = "moe.route"(%[[LOGITS]], %[[N]]) {groups = 1 : i64,
// CHECK-SAME: operandSegmentSizes = array<i32: 1, 0, 1>, renormalise = true, scale = 2.500000e+00 : f32,
// CHECK-SAME: score = "softmax_before_topk", top_groups = 1 : i64, topk = 2 : i64}
// CHECK-NEXT: return %[[ROUTE]]#0, %[[ROUTE]]#1 : tensor<?x2xf32>, tensor<?x2xi32>
func.func @routes(%x: !torch.vtensor<[?,64],bf16> {moe.input = "x"}, %n: !torch.vtensor<[1],si32>,
                  %w: !torch.vtensor<[8,64],bf16>)
    -> (!torch.vtensor<[?,2],f32>, !torch.vtensor<[?,2],si32>) attributes {torch.assume_strict_symbolic_shapes} {
  %none = torch.constant.none
  %0 = torch.aten.linear %x, %w, %none : !torch.vtensor<[?,64],bf16>, !torch.vtensor<[8,64],bf16>, !torch.none -> !torch.vtensor<[?,8],bf16>
  %two = torch.constant.int 2
  %score = torch.constant.str "softmax_before_topk"
  %true = torch.constant.bool true
  %scale = torch.constant.float 2.500000e+00
  %one = torch.constant.int 1
  %1:2 = torch.operator "torch.moe.route"(%0, %none, %n, %two, %score, %true, %scale, %one, %one) : (!torch.vtensor<[?,8],bf16>, !torch.none, !torch.vtensor<[1],si32>, !torch.int, !torch.str, !torch.bool, !torch.float, !torch.int, !torch.int) -> (!torch.vtensor<[?,2],f32>, !torch.vtensor<[?,2],si32>)
  return %1#0, %1#1 : !torch.vtensor<[?,2],f32>, !torch.vtensor<[?,2],si32>
}

// -----

// Bytes that hold MXFP4 become its types, a payload's last two axes one. No cast is left: nothing here is torch's.
// CHECK-LABEL: func.func @retypes_mxfp4(
// CHECK-SAME: %[[X:[^:]*]]: tensor<?x64xbf16>
// CHECK-SAME: tensor<4x128x64xf4E2M1FN> {moe.weight = "gate_up_blocks"}, %{{[^:]*}}: tensor<4x128x2xf8E8M0FNU>
// CHECK-SAME: tensor<4x64x64xf4E2M1FN>, %{{[^:]*}}: tensor<4x64x2xf8E8M0FNU>) -> tensor<?x64xbf16> {
// CHECK-NEXT: %[[OUT:.*]] = "moe.experts"(%[[X]], {{.*}}) {activation = "swiglu", alpha = 1.702000e+00 : f32,
// CHECK-SAME: gate_up_order = "interleaved", limit = 7.000000e+00 : f32,
// CHECK-SAME: operandSegmentSizes = array<i32: 1, 0, 1, 1, 1, 1, 0, 1, 1, 0, 0, 0>, weight_order = "nk"}
// CHECK-NEXT: return %[[OUT]]
func.func @retypes_mxfp4(%x: !torch.vtensor<[?,64],bf16>, %ids: !torch.vtensor<[?,2],si32>, %weights: !torch.vtensor<[?,2],f32>,
    %w1: !torch.vtensor<[4,128,2,16],ui8> {moe.weight = "gate_up_blocks"}, %s1: !torch.vtensor<[4,128,2],ui8>,
    %w2: !torch.vtensor<[4,64,2,16],ui8>, %s2: !torch.vtensor<[4,64,2],ui8>) -> !torch.vtensor<[?,64],bf16> {
  %none = torch.constant.none
  %dtype = torch.constant.int 15
  %activation = torch.constant.str "swiglu"
  %alpha = torch.constant.float 1.702000e+00
  %limit = torch.constant.float 7.000000e+00
  %order = torch.constant.str "interleaved"
  %nk = torch.constant.str "nk"
  %0 = torch.operator "torch.moe.experts"(%x, %none, %ids, %weights, %w1, %s1, %none, %w2, %s2, %none, %dtype, %activation, %alpha, %limit, %order, %nk) : (!torch.vtensor<[?,64],bf16>, !torch.none, !torch.vtensor<[?,2],si32>, !torch.vtensor<[?,2],f32>, !torch.vtensor<[4,128,2,16],ui8>, !torch.vtensor<[4,128,2],ui8>, !torch.none, !torch.vtensor<[4,64,2,16],ui8>, !torch.vtensor<[4,64,2],ui8>, !torch.none, !torch.int, !torch.str, !torch.float, !torch.float, !torch.str, !torch.str) -> !torch.vtensor<[?,64],bf16>
  return %0 : !torch.vtensor<[?,64],bf16>
}

// -----

// Pre-quantised activations: two codes a byte, so the axis doubles.
// CHECK-LABEL: func.func @retypes_prequantised_activations(
// CHECK-SAME: %[[X:[^:]*]]: tensor<?x64xf4E2M1FN>, %[[S:[^:]*]]: tensor<?x2xf8E8M0FNU>
// CHECK: "moe.experts"(%[[X]], %[[S]],
// CHECK-SAME: operandSegmentSizes = array<i32: 1, 1, 1, 1, 1, 0, 0, 1, 0, 0, 0, 0>
func.func @retypes_prequantised_activations(%x: !torch.vtensor<[?,32],ui8>, %s: !torch.vtensor<[?,2],ui8>,
    %ids: !torch.vtensor<[?,2],si32>, %weights: !torch.vtensor<[?,2],f32>,
    %w1: !torch.vtensor<[4,128,64],bf16>, %w2: !torch.vtensor<[4,64,64],bf16>) -> !torch.vtensor<[?,64],bf16> {
  %none = torch.constant.none
  %dtype = torch.constant.int 15
  %activation = torch.constant.str "silu"
  %zero = torch.constant.float 0.000000e+00
  %order = torch.constant.str "concatenated"
  %nk = torch.constant.str "nk"
  %0 = torch.operator "torch.moe.experts"(%x, %s, %ids, %weights, %w1, %none, %none, %w2, %none, %none, %dtype, %activation, %zero, %zero, %order, %nk) : (!torch.vtensor<[?,32],ui8>, !torch.vtensor<[?,2],ui8>, !torch.vtensor<[?,2],si32>, !torch.vtensor<[?,2],f32>, !torch.vtensor<[4,128,64],bf16>, !torch.none, !torch.none, !torch.vtensor<[4,64,64],bf16>, !torch.none, !torch.none, !torch.int, !torch.str, !torch.float, !torch.float, !torch.str, !torch.str) -> !torch.vtensor<[?,64],bf16>
  return %0 : !torch.vtensor<[?,64],bf16>
}

// -----

// What torch.export asserts about metadata and shapes is gone, with everything that nobody reads then.
// CHECK-LABEL: func.func @erases_assertions_and_dead_ops(
// CHECK-NEXT: torch_c.from_builtin_tensor
// CHECK-NEXT: torch.aten.silu
// CHECK-NEXT: torch_c.to_builtin_tensor
// CHECK-NEXT: return
func.func @erases_assertions_and_dead_ops(%x: !torch.vtensor<[?,64],bf16>) -> !torch.vtensor<[?,64],bf16> {
  %none = torch.constant.none
  %five = torch.constant.int 5
  %m = torch.symbolic_int "s0" {min_val = 0, max_val = 1024} : !torch.int
  torch.bind_symbolic_shape %x, [%m], affine_map<()[s0] -> (s0, 64)> : !torch.vtensor<[?,64],bf16>
  torch.operator "torch.aten._assert_tensor_metadata"(%x, %none, %none, %five) : (!torch.vtensor<[?,64],bf16>, !torch.none, !torch.none, !torch.int) -> ()
  %0 = torch.aten.silu %x : !torch.vtensor<[?,64],bf16> -> !torch.vtensor<[?,64],bf16>
  %1 = torch.aten.silu %0 : !torch.vtensor<[?,64],bf16> -> !torch.vtensor<[?,64],bf16>
  return %0 : !torch.vtensor<[?,64],bf16>
}

// -----

// CHECK-LABEL: func.func @leaves_functions_without_torch(
// CHECK-NEXT: %[[DEAD:.*]] = arith.constant 1 : index
// CHECK-NEXT: return %{{.*}} : tensor<?x64xbf16>
func.func @leaves_functions_without_torch(%x: tensor<?x64xbf16>) -> tensor<?x64xbf16> {
  %dead = arith.constant 1 : index
  return %x : tensor<?x64xbf16>
}
