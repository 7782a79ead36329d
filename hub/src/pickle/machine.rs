//! A pickle machine that knows the opcodes of `torch.save` and constructs nothing but numbers, texts, containers,
//! storages and tensors. Any other class or function is refused when its name is met, before it could be called.
//!
//! Containers live in arenas and are referred to by index: a deeply nested or cyclic pickle costs no stack.

use std::collections::HashMap;
use std::rc::Rc;

use super::PickleError;
use super::globals::Global;
use super::view::{StorageRef, View};

/// A value of the machine.
#[derive(Clone, Debug)]
pub(super) enum Value {
    None,
    Bool(bool),
    Int(i128),
    Float,
    Text(Rc<str>),
    Tuple(usize),
    List(usize),
    Dict(usize),
    Global(Global),
    Storage(usize),
    Tensor(usize),
}

/// Everything that one pickle made.
#[derive(Default)]
pub(super) struct Machine {
    stack: Vec<Value>,
    marks: Vec<usize>,
    memo: HashMap<u32, Value>,
    tuples: Vec<Vec<Value>>,
    lists: Vec<Vec<Value>>,
    dicts: Vec<Vec<(Value, Value)>>,
    storages: Vec<StorageRef>,
    tensors: Vec<View>,
}

/// Reads from the pickle's bytes.
struct Input<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Input<'a> {
    fn take(&mut self, n: usize) -> Result<&'a [u8], PickleError> {
        let end =
            self.at.checked_add(n).filter(|end| *end <= self.bytes.len()).ok_or(PickleError::Truncated)?;
        let taken = &self.bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }

    fn byte(&mut self) -> Result<u8, PickleError> {
        Ok(self.take(1)?[0])
    }

    fn u32(&mut self) -> Result<u32, PickleError> {
        Ok(u32::from_le_bytes(self.take(4)?.try_into().expect("four bytes")))
    }

    fn line(&mut self) -> Result<&'a str, PickleError> {
        let rest = &self.bytes[self.at..];
        let end = rest.iter().position(|b| *b == b'\n').ok_or(PickleError::Truncated)?;
        let line = text(self.take(end)?)?;
        self.at += 1;
        Ok(line)
    }
}

fn text(bytes: &[u8]) -> Result<&str, PickleError> {
    std::str::from_utf8(bytes).map_err(|_| PickleError::Malformed("a text is not UTF-8"))
}

impl Machine {
    /// Runs one pickle; its value, and how many bytes it took.
    pub fn run(&mut self, bytes: &[u8]) -> Result<(Value, usize), PickleError> {
        let mut input = Input { bytes, at: 0 };
        loop {
            let op = input.byte()?;
            match op {
                b'.' => {
                    let result = self.pop()?;
                    self.stack.clear();
                    self.marks.clear();
                    self.memo.clear();
                    return Ok((result, input.at));
                }
                // PROTO, FRAME: nothing depends on them.
                0x80 => drop(input.take(1)?),
                0x95 => drop(input.take(8)?),
                b'(' => self.marks.push(self.stack.len()),
                b'0' => drop(self.pop()?),
                b'1' => drop(self.pop_to_mark()?),
                b'N' => self.stack.push(Value::None),
                0x88 | 0x89 => self.stack.push(Value::Bool(op == 0x88)),
                b'J' => {
                    let number = i32::from_le_bytes(input.take(4)?.try_into().expect("four bytes"));
                    self.stack.push(Value::Int(number.into()));
                }
                b'K' => self.stack.push(Value::Int(input.byte()?.into())),
                b'M' => {
                    let number = u16::from_le_bytes(input.take(2)?.try_into().expect("two bytes"));
                    self.stack.push(Value::Int(number.into()));
                }
                0x8a => {
                    let length = input.byte()?.into();
                    self.stack.push(Value::Int(long(input.take(length)?)?));
                }
                b'G' => {
                    input.take(8)?;
                    self.stack.push(Value::Float);
                }
                b'X' | b'T' => {
                    let length = input.u32()? as usize;
                    self.push_text(input.take(length)?)?;
                }
                0x8c | b'U' => {
                    let length = input.byte()?.into();
                    self.push_text(input.take(length)?)?;
                }
                b')' => self.push_tuple(Vec::new()),
                b't' => {
                    let items = self.pop_to_mark()?;
                    self.push_tuple(items);
                }
                0x85..=0x87 => {
                    let items = self.pop_n(usize::from(op - 0x84))?;
                    self.push_tuple(items);
                }
                b']' => self.push_list(Vec::new()),
                b'l' => {
                    let items = self.pop_to_mark()?;
                    self.push_list(items);
                }
                b'a' => {
                    let item = self.pop()?;
                    self.top_list()?.push(item);
                }
                b'e' => {
                    let items = self.pop_to_mark()?;
                    self.top_list()?.extend(items);
                }
                b'}' => self.push_dict(Vec::new()),
                b'd' => {
                    let pairs = pairs(self.pop_to_mark()?)?;
                    self.push_dict(pairs);
                }
                b's' => {
                    let pair = pairs(self.pop_n(2)?)?;
                    self.top_dict()?.extend(pair);
                }
                b'u' => {
                    let pairs = pairs(self.pop_to_mark()?)?;
                    self.top_dict()?.extend(pairs);
                }
                b'c' => {
                    let (module, name) = (input.line()?, input.line()?);
                    self.stack.push(Value::Global(Global::find(module, name)?));
                }
                0x93 => match self.pop_n(2)?.as_slice() {
                    [Value::Text(module), Value::Text(name)] => {
                        let global = Global::find(module, name)?;
                        self.stack.push(Value::Global(global));
                    }
                    _ => return Err(PickleError::Malformed("a global's name is not text")),
                },
                b'R' => self.reduce()?,
                // BUILD: the state of an OrderedDict (its `_metadata`) or parameter says nothing about tensors.
                b'b' => {
                    self.pop()?;
                    if !matches!(self.stack.last(), Some(Value::Dict(_) | Value::Tensor(_))) {
                        return Err(PickleError::Malformed("state is set on something that has none"));
                    }
                }
                b'Q' => {
                    let id = self.pop()?;
                    let storage = self.storage_of(&id)?;
                    self.storages.push(storage);
                    self.stack.push(Value::Storage(self.storages.len() - 1));
                }
                b'h' => {
                    let key = input.byte()?.into();
                    self.recall(key)?;
                }
                b'j' => {
                    let key = input.u32()?;
                    self.recall(key)?;
                }
                b'q' => {
                    let key = input.byte()?.into();
                    self.memorise(key)?;
                }
                b'r' => {
                    let key = input.u32()?;
                    self.memorise(key)?;
                }
                0x94 => {
                    let key = u32::try_from(self.memo.len()).map_err(|_| PickleError::Truncated)?;
                    self.memorise(key)?;
                }
                other => return Err(PickleError::ForbiddenOpcode(other)),
            }
        }
    }

    pub fn tuple(&self, value: &Value) -> Option<&[Value]> {
        match value {
            Value::Tuple(at) => Some(&self.tuples[*at]),
            _ => None,
        }
    }

    pub fn list(&self, value: &Value) -> Option<&[Value]> {
        match value {
            Value::List(at) => Some(&self.lists[*at]),
            _ => None,
        }
    }

    pub fn dict(&self, value: &Value) -> Option<&[(Value, Value)]> {
        match value {
            Value::Dict(at) => Some(&self.dicts[*at]),
            _ => None,
        }
    }

    pub fn tensor(&self, value: &Value) -> Option<&View> {
        match value {
            Value::Tensor(at) => Some(&self.tensors[*at]),
            _ => None,
        }
    }

    pub fn storages(&self) -> &[StorageRef] {
        &self.storages
    }

    fn pop(&mut self) -> Result<Value, PickleError> {
        // What lies below a mark belongs to whoever set it.
        if self.marks.last().is_some_and(|mark| *mark >= self.stack.len()) {
            return Err(PickleError::Malformed("the stack is empty"));
        }
        self.stack.pop().ok_or(PickleError::Malformed("the stack is empty"))
    }

    fn pop_n(&mut self, n: usize) -> Result<Vec<Value>, PickleError> {
        let mut items = (0..n).map(|_| self.pop()).collect::<Result<Vec<_>, _>>()?;
        items.reverse();
        Ok(items)
    }

    fn pop_to_mark(&mut self) -> Result<Vec<Value>, PickleError> {
        let mark = self.marks.pop().ok_or(PickleError::Malformed("there is no mark"))?;
        Ok(self.stack.split_off(mark))
    }

    fn push_text(&mut self, bytes: &[u8]) -> Result<(), PickleError> {
        self.stack.push(Value::Text(text(bytes)?.into()));
        Ok(())
    }

    fn push_tuple(&mut self, items: Vec<Value>) {
        self.tuples.push(items);
        self.stack.push(Value::Tuple(self.tuples.len() - 1));
    }

    fn push_list(&mut self, items: Vec<Value>) {
        self.lists.push(items);
        self.stack.push(Value::List(self.lists.len() - 1));
    }

    fn push_dict(&mut self, items: Vec<(Value, Value)>) {
        self.dicts.push(items);
        self.stack.push(Value::Dict(self.dicts.len() - 1));
    }

    fn top_list(&mut self) -> Result<&mut Vec<Value>, PickleError> {
        match self.stack.last() {
            Some(Value::List(at)) => Ok(&mut self.lists[*at]),
            _ => Err(PickleError::Malformed("an item is added to what is no list")),
        }
    }

    fn top_dict(&mut self) -> Result<&mut Vec<(Value, Value)>, PickleError> {
        match self.stack.last() {
            Some(Value::Dict(at)) => Ok(&mut self.dicts[*at]),
            _ => Err(PickleError::Malformed("an item is set in what is no dict")),
        }
    }

    fn recall(&mut self, key: u32) -> Result<(), PickleError> {
        let value = self.memo.get(&key).ok_or(PickleError::Malformed("an unknown memo is recalled"))?;
        self.stack.push(value.clone());
        Ok(())
    }

    fn memorise(&mut self, key: u32) -> Result<(), PickleError> {
        let value = self.stack.last().ok_or(PickleError::Malformed("the stack is empty"))?;
        self.memo.insert(key, value.clone());
        Ok(())
    }

    /// Calls one of the known functions.
    fn reduce(&mut self) -> Result<(), PickleError> {
        let arguments = self.pop()?;
        let function = self.pop()?;
        let arguments = self.tuple(&arguments).ok_or(PickleError::Malformed("arguments are not a tuple"))?;
        let made = match (&function, arguments) {
            (Value::Global(Global::OrderedDict), []) => {
                self.dicts.push(Vec::new());
                Value::Dict(self.dicts.len() - 1)
            }
            (Value::Global(Global::RebuildTensorV2), [storage, offset, size, stride, _, _, ..])
            | (Value::Global(Global::RebuildTensor), [storage, offset, size, stride]) => {
                let Value::Storage(at) = storage else {
                    return Err(PickleError::Malformed("a tensor has no storage"));
                };
                let (size, stride) = (self.numbers(size)?, self.numbers(stride)?);
                let view = View::new(&self.storages[*at], number(offset)?, size, stride)?;
                self.tensors.push(view);
                Value::Tensor(self.tensors.len() - 1)
            }
            (Value::Global(Global::RebuildParameter), [tensor @ Value::Tensor(_), ..]) => tensor.clone(),
            (Value::Global(_), _) => return Err(PickleError::Malformed("a call has the wrong arguments")),
            _ => return Err(PickleError::Malformed("something is called that is no function")),
        };
        self.stack.push(made);
        Ok(())
    }

    fn numbers(&self, value: &Value) -> Result<Vec<u64>, PickleError> {
        let items = self.tuple(value).or_else(|| self.list(value));
        items.ok_or(PickleError::Malformed("a shape is not a tuple"))?.iter().map(number).collect()
    }

    /// `('storage', type, key, location, elements)`, in the older format with a sixth item that views used.
    fn storage_of(&self, id: &Value) -> Result<StorageRef, PickleError> {
        match self.tuple(id) {
            Some(
                [
                    Value::Text(kind),
                    Value::Global(Global::Storage(dtype)),
                    key,
                    _location,
                    elements,
                    rest @ ..,
                ],
            ) if &**kind == "storage" && matches!(rest, [] | [Value::None]) => {
                let key = match key {
                    Value::Text(key) => key.to_string(),
                    Value::Int(key) => key.to_string(),
                    _ => return Err(PickleError::Malformed("a storage has no key")),
                };
                Ok(StorageRef { key, dtype: *dtype, elements: number(elements)? })
            }
            _ => Err(PickleError::Malformed("a persistent object is not a storage")),
        }
    }
}

fn pairs(items: Vec<Value>) -> Result<Vec<(Value, Value)>, PickleError> {
    if !items.len().is_multiple_of(2) {
        return Err(PickleError::Malformed("a dict has a key without value"));
    }
    let mut items = items.into_iter();
    Ok(std::iter::from_fn(|| Some((items.next()?, items.next()?))).collect())
}

fn number(value: &Value) -> Result<u64, PickleError> {
    match value {
        Value::Int(number) => {
            u64::try_from(*number).map_err(|_| PickleError::Malformed("a size is out of range"))
        }
        _ => Err(PickleError::Malformed("a size is not a number")),
    }
}

/// Little-endian two's complement of up to 16 bytes.
fn long(bytes: &[u8]) -> Result<i128, PickleError> {
    let Some(last) = bytes.last() else { return Ok(0) };
    if bytes.len() > 16 {
        return Err(PickleError::Malformed("a number has more than 128 bits"));
    }
    let mut all = [if last & 0x80 == 0 { 0 } else { 0xff }; 16];
    all[..bytes.len()].copy_from_slice(bytes);
    Ok(i128::from_le_bytes(all))
}
