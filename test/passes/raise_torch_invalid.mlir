// RUN: moeloom-opt %s -p moe-raise-torch --split-input-file --verify-diagnostics

func.func @unknown_operator(%x: !torch.vtensor<[?,64],bf16>) -> !torch.vtensor<[?,64],bf16> {
  // expected-error@+1 {{there is no operator 'torch.moe.mix'; there are torch.moe.route and torch.moe.experts}}
  %0 = torch.operator "torch.moe.mix"(%x) : (!torch.vtensor<[?,64],bf16>) -> !torch.vtensor<[?,64],bf16>
  return %0 : !torch.vtensor<[?,64],bf16>
}

// -----

func.func @wrong_number_of_operands(%x: !torch.vtensor<[?,8],bf16>) -> (!torch.vtensor<[?,2],f32>, !torch.vtensor<[?,2],si32>) {
  // expected-error@+1 {{'torch.moe.route' has 1 -> 2 operands -> results; it must have 9 -> 2}}
  %0:2 = torch.operator "torch.moe.route"(%x) : (!torch.vtensor<[?,8],bf16>) -> (!torch.vtensor<[?,2],f32>, !torch.vtensor<[?,2],si32>)
  return %0#0, %0#1 : !torch.vtensor<[?,2],f32>, !torch.vtensor<[?,2],si32>
}

// -----

func.func @computed_attribute(%x: !torch.vtensor<[?,8],bf16>) -> (!torch.vtensor<[?,2],f32>, !torch.vtensor<[?,2],si32>) {
  %none = torch.constant.none
  %one = torch.constant.int 1
  %score = torch.constant.str "sigmoid"
  %true = torch.constant.bool true
  %scale = torch.constant.float 1.000000e+00
  %m = torch.aten.size.int %x, %one : !torch.vtensor<[?,8],bf16>, !torch.int -> !torch.int
  // expected-error@+1 {{topk of 'torch.moe.route' is computed; it must be a constant}}
  %0:2 = torch.operator "torch.moe.route"(%x, %none, %none, %m, %score, %true, %scale, %one, %one) : (!torch.vtensor<[?,8],bf16>, !torch.none, !torch.none, !torch.int, !torch.str, !torch.bool, !torch.float, !torch.int, !torch.int) -> (!torch.vtensor<[?,2],f32>, !torch.vtensor<[?,2],si32>)
  return %0#0, %0#1 : !torch.vtensor<[?,2],f32>, !torch.vtensor<[?,2],si32>
}

// -----

func.func @computed_payload(%x: !torch.vtensor<[?,32],ui8>, %s: !torch.vtensor<[?,2],ui8>,
    %ids: !torch.vtensor<[?,2],si32>, %weights: !torch.vtensor<[?,2],f32>,
    %w1: !torch.vtensor<[4,128,64],bf16>, %w2: !torch.vtensor<[4,64,64],bf16>) -> !torch.vtensor<[?,64],bf16> {
  %none = torch.constant.none
  %dtype = torch.constant.int 15
  %activation = torch.constant.str "silu"
  %zero = torch.constant.float 0.000000e+00
  %order = torch.constant.str "concatenated"
  %nk = torch.constant.str "nk"
  %neg = torch.aten.neg %x : !torch.vtensor<[?,32],ui8> -> !torch.vtensor<[?,32],ui8>
  // expected-error@+1 {{MXFP4 x must be a function argument that nothing else reads, for its bytes are codes}}
  %0 = torch.operator "torch.moe.experts"(%neg, %s, %ids, %weights, %w1, %none, %none, %w2, %none, %none, %dtype, %activation, %zero, %zero, %order, %nk) : (!torch.vtensor<[?,32],ui8>, !torch.vtensor<[?,2],ui8>, !torch.vtensor<[?,2],si32>, !torch.vtensor<[?,2],f32>, !torch.vtensor<[4,128,64],bf16>, !torch.none, !torch.none, !torch.vtensor<[4,64,64],bf16>, !torch.none, !torch.none, !torch.int, !torch.str, !torch.float, !torch.float, !torch.str, !torch.str) -> !torch.vtensor<[?,64],bf16>
  return %0 : !torch.vtensor<[?,64],bf16>
}

// -----

func.func @scales_with_another_reader(%x: !torch.vtensor<[?,32],ui8>, %s: !torch.vtensor<[?,2],ui8>,
    %ids: !torch.vtensor<[?,2],si32>, %weights: !torch.vtensor<[?,2],f32>,
    %w1: !torch.vtensor<[4,128,64],bf16>, %w2: !torch.vtensor<[4,64,64],bf16>)
    -> (!torch.vtensor<[?,64],bf16>, !torch.vtensor<[?,2],ui8>) {
  %none = torch.constant.none
  %dtype = torch.constant.int 15
  %activation = torch.constant.str "silu"
  %zero = torch.constant.float 0.000000e+00
  %order = torch.constant.str "concatenated"
  %nk = torch.constant.str "nk"
  // expected-error@+1 {{MXFP4 x must be a function argument that nothing else reads, for its bytes are codes}}
  %0 = torch.operator "torch.moe.experts"(%x, %s, %ids, %weights, %w1, %none, %none, %w2, %none, %none, %dtype, %activation, %zero, %zero, %order, %nk) : (!torch.vtensor<[?,32],ui8>, !torch.vtensor<[?,2],ui8>, !torch.vtensor<[?,2],si32>, !torch.vtensor<[?,2],f32>, !torch.vtensor<[4,128,64],bf16>, !torch.none, !torch.none, !torch.vtensor<[4,64,64],bf16>, !torch.none, !torch.none, !torch.int, !torch.str, !torch.float, !torch.float, !torch.str, !torch.str) -> !torch.vtensor<[?,64],bf16>
  return %0, %s : !torch.vtensor<[?,64],bf16>, !torch.vtensor<[?,2],ui8>
}

// -----

// expected-error@+1 {{!torch.vtensor is no value tensor of known rank and element type; export the model with torch.export}}
func.func @unranked(%x: !torch.vtensor) -> !torch.vtensor {
  return %x : !torch.vtensor
}
